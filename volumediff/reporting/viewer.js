// One case: state, controls, outlines, numbers and keys; `CanvasSlices` or `NiivueSlices` draw below.
(() => {
  const root = document.getElementById("case-viewer");
  const scene = JSON.parse(document.getElementById("scene").textContent);

  // ---- elements

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name in made && typeof value === "boolean") made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  const option = (layers) => layers.map((layer, i) => new Option(layer.name, String(i)));
  const number = (text, id, oninput) => element("label", {}, text, " ", element("input", { type: "number", step: "any", id, oninput }));
  const check = (text, id, checked, oninput) => element("label", {}, element("input", { type: "checkbox", id, checked, oninput }), " ", text);
  const button = (text, title, onclick, more = {}) => element("button", { type: "button", title, "aria-label": title, onclick, ...more }, text);
  const byId = (id) => document.getElementById(id);

  // ---- volumes: NIfTI in gzip in base64

  async function unpacked(id) {
    const packed = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  class Volume {
    constructor(buffer) {
      const header = new DataView(buffer);
      this.buffer = buffer;
      this.slope = header.getFloat32(112, true);
      this.inter = header.getFloat32(116, true);
      this.stored = header.getInt16(70, true) === 2 ? new Uint8Array(buffer, 352) : new Uint16Array(buffer, 352);
      // digits that the 16 bits carry
      this.decimals = Math.min(8, Math.max(0, Math.floor(-Math.log10(this.slope))));
    }
    value(at) { return this.slope * this.stored[at] + this.inter; }
    text(at) { return this.value(at).toFixed(this.decimals); }
  }

  // ---- state

  // The side that the rendering is seen from: that of the first place, else from the front.
  function facing(at) {
    const [x, y] = [0, 1].map((a) => (at[a] - (scene.shape[a] - 1) / 2) * scene.spacing[a]);
    return Math.hypot(x, y) < 1 ? 180 : (Math.atan2(-x, -y) * 180) / Math.PI;
  }

  const windowOf = (image) => (scene.one_window ? 0 : scene.images.indexOf(image));

  // labels are shown before maps, not below them
  const first = scene.labels.length ? null : scene.maps[0];
  const state = {
    at: scene.start.slice(), plane: 0, shown: "all", beside: null, zoom: 1, centre: [0, 0, 0], azimuth: facing(scene.start), elevation: 15, cut: Boolean(first || scene.labels.length),
    image: scene.images[0], windows: scene.images.map((image) => image.window.slice()), map: first || null, opacity: 0.75, labels: scene.labels[0] || null, labelOpacity: 0.55,
    hidden: new Set(), labelColours: new Map(scene.values.map((v) => [v.value, channels(v.colour)])),
    outlines: new Set(scene.outlines.filter((o) => o.shown).map((o) => o.name)), smooth: true, radiological: true, drag: "crosshair", place: -1,
    get window() { return this.windows[windowOf(this.image)]; },
    set window(range) { this.windows[windowOf(this.image)] = range; },
  };
  let slices = null, webgl = "none", failed = "", tiles = [], busy = false, again = false;
  let base = element("canvas");
  const over = element("canvas", { tabindex: "0", role: "img", "aria-label": `Slices of ${scene.title}. Press question mark for the keys.` });
  const stage = element("div", { class: "stage" }, base, over);

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const index = (at) => at[0] + scene.shape[0] * (at[1] + scene.shape[1] * at[2]);

  const spanOf = (map) => ({ floor: map.low + 0.3 * (map.high - map.low), top: map.high });
  if (first) Object.assign(state, spanOf(first));

  // ---- two layers side by side: the state of the slices, and the same with another layer in it

  const others = [["image", scene.images], ["map", scene.maps], ["labels", scene.labels]].flatMap(([kind, layers]) => layers.map((layer) => ({ kind, layer })));
  let asked = false; // whether 3D comes back afterwards

  function besideState() {
    const { kind, layer } = state.beside, made = { ...state, map: null, labels: null, [kind]: layer };
    if (kind === "image") made.window = state.windows[windowOf(layer)];
    return kind === "map" ? Object.assign(made, spanOf(layer)) : made;
  }

  async function compare(found) {
    if (found && !found.layer.volume) found.layer.volume = new Volume(await unpacked(found.layer.id));
    state.beside = found || null;
    if (found && slices.renders) {
      asked = true;
      onCanvas("Two layers side by side are drawn on the canvas.");
    } else if (!found && asked) {
      onWebgl();
    } else {
      redraw();
    }
  }

  // What a side shows, with the range of its colours.
  function titleOf(shown) {
    const digits = (x) => Number(x.toPrecision(3));
    if (shown.labels) return shown.labels.name;
    return shown.map ? `${shown.map.name}, colours ${digits(shown.floor)} to ${digits(shown.top)} ${shown.map.unit}` : shown.image.name;
  }

  function millimetres(at) {
    return scene.affine.slice(0, 3).map((r) => r[0] * at[0] + r[1] * at[1] + r[2] * at[2] + r[3]);
  }

  function moveTo(at) {
    state.at = at.map((i, a) => clamp(Math.round(i), 0, scene.shape[a] - 1));
    redraw();
  }

  function step(axis, by) {
    const at = state.at.slice();
    at[axis] += by;
    moveTo(at);
  }

  function zoomBy(factor) {
    const zoom = clamp(state.zoom * factor, 1, 16);
    // towards the crosshair, back to the whole
    state.centre = zoom === 1 ? [0, 0, 0] : state.at.map((i, a) => (i - (scene.shape[a] - 1) / 2) * scene.spacing[a] * (1 - 1 / zoom));
    state.zoom = zoom;
    redraw();
  }

  async function choose(kind, layer) {
    root.setAttribute("aria-busy", "true");
    if (layer && !layer.volume) layer.volume = new Volume(await unpacked(layer.id));
    state[kind] = layer;
    if (kind === "map" && layer) Object.assign(state, spanOf(layer));
    redraw();
  }

  function jump(number) {
    const places = scene.places.filter((p) => p.at);
    if (!places.length) return;
    state.place = (number + places.length) % places.length;
    moveTo(places[state.place].at);
  }

  // ---- drawing

  function rectangles() {
    const { width } = stage.getBoundingClientRect();
    const sides = state.beside ? [state, besideState()] : [state];
    const planes = state.shown === "all" ? (slices.renders ? [0, 1, 2, 3] : [0, 1, 2]) : [state.shown];
    const columns = state.beside ? 2 : planes.length === 1 ? 1 : planes.length === 3 && width > 720 ? 3 : 2;
    const cells = planes.flatMap((plane) => sides.map((of, side) => ({ plane, of, side })));
    const rows = Math.ceil(cells.length / columns);
    const extent = (axis) => scene.shape[axis] * scene.spacing[axis];
    const tallest = Math.max(...planes.map((p) => (p === 3 ? 1 : extent(PLANES[p].up) / extent(PLANES[p].right))));
    const most = document.fullscreenElement === root ? window.innerHeight - (root.scrollHeight - stage.clientHeight) - 8 : 0.8 * window.innerHeight;
    const height = Math.max(320, Math.min(rows * (width / columns) * tallest, most));
    stage.style.height = `${Math.round(height)}px`;
    const [w, h] = [width / columns, Math.round(height) / rows];
    const gap = cells.length > 1 ? 3 : 0;
    return cells.map((cell, n) => ({
      ...cell, left: (n % columns) * w + gap, top: Math.floor(n / columns) * h + gap, width: w - 2 * gap, height: h - 2 * gap,
    }));
  }

  function redraw() {
    root.setAttribute("aria-busy", "true");
    if (busy) { again = true; return; }
    busy = true;
    requestAnimationFrame(async () => {
      try {
        tiles = await slices.draw(state, rectangles());
        overlay();
        report();
      } catch (error) {
        if (!slices.renders) throw error;
        onCanvas(error.message);
      } finally {
        busy = false;
        if (again) { again = false; redraw(); } else root.setAttribute("aria-busy", "false");
      }
    });
  }

  const xOf = (tile, u) => tile.left + (u - tile.u0) / tile.du;
  const yOf = (tile, v) => tile.top + (v - tile.v0) / tile.dv;

  function overlay() {
    const dpr = window.devicePixelRatio || 1, box = stage.getBoundingClientRect();
    over.width = Math.round(box.width * dpr);
    over.height = Math.round(box.height * dpr);
    const g = over.getContext("2d");
    g.scale(dpr, dpr);
    for (const tile of tiles) {
      if (tile.plane === 3) continue;
      g.save();
      g.beginPath();
      g.rect(tile.left, tile.top, tile.width, tile.height);
      g.clip();
      for (const outline of scene.outlines.slice().reverse()) if (state.outlines.has(outline.name)) edges(g, tile, outline);
      crosshair(g, tile);
      letters(g, tile);
      if (state.beside) title(g, tile, titleOf(tile.side ? besideState() : state));
      g.restore();
    }
  }

  // The edges of a mask in a plane, along the borders of its voxels.
  function edges(g, tile, outline) {
    const plane = PLANES[tile.plane], at = state.at.slice(), stored = outline.volume.stored;
    const size = [scene.shape[plane.right], scene.shape[plane.up]];
    const mask = (u, v) => {
      if (u < 0 || v < 0 || u >= size[0] || v >= size[1]) return 0;
      at[plane.right] = u;
      at[plane.up] = v;
      return stored[index(at)];
    };
    const path = new Path2D();
    const line = (u0, v0, u1, v1) => { path.moveTo(xOf(tile, u0), yOf(tile, v0)); path.lineTo(xOf(tile, u1), yOf(tile, v1)); };
    for (let u = -1; u < size[0]; u++) {
      for (let v = -1; v < size[1]; v++) {
        const here = mask(u, v);
        if (here !== mask(u + 1, v)) line(u + 0.5, v - 0.5, u + 0.5, v + 0.5);
        if (here !== mask(u, v + 1)) line(u - 0.5, v + 0.5, u + 0.5, v + 0.5);
      }
    }
    g.strokeStyle = outline.colour;
    g.lineWidth = 1.5;
    g.stroke(path);
  }

  function crosshair(g, tile) {
    const plane = PLANES[tile.plane], x = xOf(tile, state.at[plane.right]), y = yOf(tile, state.at[plane.up]);
    g.strokeStyle = "rgba(120, 220, 120, 0.6)";
    g.lineWidth = 1;
    g.beginPath();
    g.moveTo(tile.left, y); g.lineTo(x - 5, y); g.moveTo(x + 5, y); g.lineTo(tile.left + tile.width, y);
    g.moveTo(x, tile.top); g.lineTo(x, y - 5); g.moveTo(x, y + 5); g.lineTo(x, tile.top + tile.height);
    g.stroke();
  }

  const ENDS = ["LR", "PA", "IS"];

  function letters(g, tile) {
    const plane = PLANES[tile.plane], right = ENDS[plane.right], up = ENDS[plane.up], flipped = tile.du < 0;
    const put = (text, x, y, align, baseline) => {
      g.textAlign = align; g.textBaseline = baseline;
      g.strokeText(text, x, y); g.fillText(text, x, y);
    };
    g.font = "600 13px system-ui, sans-serif";
    g.strokeStyle = "#000"; g.lineWidth = 3; g.fillStyle = "#d7e0e8";
    const [x, y] = [tile.left + tile.width / 2, tile.top + tile.height / 2];
    put(right[flipped ? 1 : 0], tile.left + 4, y, "left", "middle");
    put(right[flipped ? 0 : 1], tile.left + tile.width - 4, y, "right", "middle");
    put(up[1], x, tile.top + (state.beside ? 20 : 4), "center", "top"); // below the title of a side
    put(up[0], x, tile.top + tile.height - 4, "center", "bottom");
  }

  function title(g, tile, text) {
    g.font = "600 12px system-ui, sans-serif";
    g.textAlign = "left"; g.textBaseline = "top"; g.lineWidth = 3; g.strokeStyle = "#000"; g.fillStyle = "#d7e0e8";
    g.strokeText(text, tile.left + 4, tile.top + 4);
    g.fillText(text, tile.left + 4, tile.top + 4);
  }

  // ---- numbers

  function report() {
    const here = index(state.at), parts = [];
    parts.push(scene.affine ? `${millimetres(state.at).map((x) => x.toFixed(1)).join(", ")} mm` : `voxel ${state.at.join(", ")}`);
    parts.push(`${state.image.name} ${state.image.volume.text(here)}`);
    if (state.map) parts.push(`${state.map.name} ${state.map.volume.text(here)} ${state.map.unit}`);
    for (const outline of scene.outlines) {
      if (state.outlines.has(outline.name) && outline.volume.stored[here]) parts.push(outline.inside);
    }
    if (state.labels) {
      const value = state.labels.volume.stored[here], known = scene.values.find((v) => v.value === value);
      parts.push(`${state.labels.name}: ${known ? known.name : "background"}`);
    }
    if (state.beside) {
      const { kind, layer } = state.beside, value = layer.volume.stored[here], known = scene.values.find((v) => v.value === value);
      parts.push(`beside, ${layer.name}${kind === "labels" ? `: ${known ? known.name : "background"}` : ` ${layer.volume.text(here)}`}`);
    }
    byId("viewer-read").textContent = parts.join(" · ");
    const place = scene.places.filter((p) => p.at)[state.place];
    if (byId("viewer-place")) byId("viewer-place").textContent = place ? `${place.name}: ${place.text}` : "";
    // only what is drawn may be changed by the sliders of the slices
    PLANES.forEach((plane, n) => {
      const slider = byId(`viewer-slice-${n}`);
      slider.value = state.at[plane.fixed];
      slider.closest("label").hidden = state.shown !== "all" && state.shown !== n;
    });
    root.querySelectorAll("[data-view]").forEach((b) => b.setAttribute("aria-pressed", String(String(state.shown) === b.dataset.view)));
    const fill = (id, value) => { const box = byId(id); if (box && box !== document.activeElement) box.value = value; };
    const digits = (x) => Number(x.toPrecision(4));
    fill("viewer-low", digits(state.window[0]));
    fill("viewer-high", digits(state.window[1]));
    fill("viewer-drag", state.drag);
    fill("viewer-beside", String(others.indexOf(state.beside)));
    fill("viewer-image", String(scene.images.indexOf(state.image)));
    if (byId("viewer-map")) {
      fill("viewer-map", String(scene.maps.indexOf(state.map)));
      byId("viewer-map-parts").hidden = !state.map;
    }
    if (state.map) {
      fill("viewer-floor", digits(state.floor));
      fill("viewer-top", digits(state.top));
      fill("viewer-opacity", Math.round(100 * state.opacity));
      bar();
    }
    fill("viewer-labels", String(scene.labels.indexOf(state.labels)));
    for (const [id, on] of [["viewer-radiological", state.radiological], ["viewer-smooth", state.smooth], ["viewer-cut", state.cut]]) if (byId(id)) byId(id).checked = on;
    scene.outlines.forEach((o, n) => { if (byId(`viewer-outline-${n}`)) byId(`viewer-outline-${n}`).checked = state.outlines.has(o.name); });
    Object.assign(root.dataset, { at: state.at.join(" "), zoom: state.zoom.toFixed(3), window: state.window.join(" "), slices: slices.name, tiles: JSON.stringify(tiles) });
  }

  function bar() {
    const canvas = byId("viewer-bar"), g = canvas.getContext("2d"), scale = scene.scales[state.map.colours];
    const fill = g.createLinearGradient(0, 0, canvas.width, 0);
    scale.forEach((c, i) => fill.addColorStop(i / (scale.length - 1), c));
    g.fillStyle = fill;
    g.fillRect(0, 0, canvas.width, canvas.height);
    const texts = [state.floor, (state.floor + state.top) / 2, state.top].map((x) => String(Number(x.toPrecision(3))));
    byId("viewer-bar-numbers").replaceChildren(...texts.map((t) => element("span", {}, t)));
    byId("viewer-unit").textContent = state.map.unit;
    canvas.setAttribute("aria-label", `Colour scale from ${texts[0]} to ${texts[2]} ${state.map.unit}`);
  }

  // ---- controls

  // Keys and what they do, of what the page has.
  const keys = () => [
    ["Click or drag", "move the crosshair; the list “drag” gives the first button and a finger another use"],
    ["Wheel, Page Up, Page Down", "next or previous slice of the plane under the pointer or used last"],
    ["Arrow keys", "move the crosshair in the plane, with Shift by ten voxels"],
    ["Right button", "drag to change window (left and right) and level (up and down)"],
    ["Ctrl and wheel, + and −, two fingers", "zoom to the crosshair; Shift and drag moves the picture"],
    ["1, 2, 3, 0", "axial, coronal, sagittal, all"],
    ...(slices.renders ? [["4", "rendering alone"], ["C", "cut the rendering at the crosshair"]] : []),
    ...(scene.places.length ? [["N, P", "next and previous finding"]] : []),
    ...(scene.maps.length ? [["M", "map on or off"]] : []),
    ...(scene.outlines.length ? [["O", "outlines on or off"]] : []),
    ...(others.length > 1 ? [["B", "another image, map or method side by side, then none"]] : []),
    ...(scene.images.length > 1 ? [["H", "next image, such as the pseudo-healthy one"]] : []),
    ...(scene.maps.length || scene.labels.length ? [["[ and ]", "less and more opacity"]] : []),
    ["W, Z", "window, zoom as at the beginning"],
    ["R", "radiological or neurological convention"],
    ["I", "smooth or plain voxels"],
    ["F", "full screen"],
    ["?", "this list; Escape closes it"],
  ];
  let help = null;

  function controls() {
    const view = (text, value, key) => button(text, `${text} (${key})`, () => act.show(value), { "data-view": String(value), "aria-pressed": "false" });
    const bars = [];
    bars.push(element("div", { class: "bar" },
      element("span", { class: "group", role: "group", "aria-label": "View" },
        view("All", "all", "0"), ...PLANES.map((p, n) => view(p.name[0].toUpperCase() + p.name.slice(1), n, String(n + 1))),
        ...(slices.renders ? [view("3D", 3, "4")] : [])),
      element("label", {}, "drag ", element("select", { id: "viewer-drag", oninput: (e) => { state.drag = e.target.value; } },
        new Option("crosshair", "crosshair"), new Option("window", "window"), new Option("picture", "pan"))),
      element("span", { class: "group", role: "group", "aria-label": "Zoom" },
        button("−", "Zoom out", () => zoomBy(1 / 1.25)), button("+", "Zoom in", () => zoomBy(1.25)), button("Reset", "Whole picture (Z)", act.whole)),
      check("radiological", "viewer-radiological", state.radiological, act.convention),
      check("smooth", "viewer-smooth", state.smooth, act.smooth),
      ...(slices.renders ? [check("cut 3D at the crosshair", "viewer-cut", state.cut, act.cut)] : []),
      ...(webgl === "slow" && !slices.renders ? [button("Start 3D", "Start 3D; without a graphics card it takes seconds for each picture", onWebgl)] : []),
      ...(root.requestFullscreen ? [button("Full screen", "Full screen (F)", act.fullscreen)] : []),
      button("?", "Keys and mouse", act.help, { "aria-haspopup": "dialog" })));
    const setWindow = () => {
      const [low, high] = ["viewer-low", "viewer-high"].map((id) => Number(byId(id).value));
      if (high > low) { state.window = [low, high]; redraw(); }
    };
    bars.push(element("div", { class: "bar" },
      ...(scene.images.length > 1 ? [element("label", {}, "image ", element("select", { id: "viewer-image", oninput: (e) => choose("image", scene.images[Number(e.target.value)]) }, ...option(scene.images)))] : []),
      ...(others.length > 1 ? [element("label", {}, "side by side with ", element("select", { id: "viewer-beside", oninput: (e) => compare(others[Number(e.target.value)]) }, new Option("nothing", "-1"), ...option(others.map((o) => o.layer))))] : []),
      number("black at", "viewer-low", setWindow), number("white at", "viewer-high", setWindow), button("Auto", "Window as at the beginning (W)", act.window),
      ...scene.outlines.flatMap((o, n) => (o.empty ? [] : [check(element("span", {}, element("i", { class: "key", "data-colour": o.colour }), o.name), `viewer-outline-${n}`, o.shown, () => act.outline(o.name))]))));
    if (scene.maps.length) bars.push(mapBar());
    if (scene.labels.length) bars.push(labelBar());
    if (scene.places.length) bars.push(placeBar());
    return bars;
  }

  function mapBar() {
    const set = (name, scale = 1) => (e) => { if (e.target.value !== "") { state[name] = Number(e.target.value) * scale; redraw(); } };
    return element("div", { class: "bar" },
      element("label", {}, "map ", element("select", { id: "viewer-map", oninput: (e) => choose("map", scene.maps[Number(e.target.value)] || null) }, ...option(scene.maps), new Option("none", "-1"))),
      element("span", { id: "viewer-map-parts", class: "bar" },
        element("label", {}, "opacity ", element("input", { type: "range", min: "0", max: "100", id: "viewer-opacity", oninput: set("opacity", 0.01) })),
        number("hide below", "viewer-floor", set("floor")), number("brightest at", "viewer-top", set("top")),
        element("span", { class: "scale" }, element("canvas", { id: "viewer-bar", width: "160", height: "10", role: "img" }),
          element("span", { id: "viewer-bar-numbers", class: "numbers", "aria-hidden": "true" })), element("span", { id: "viewer-unit" })));
  }

  function labelBar() {
    return element("div", { class: "bar" },
      element("label", {}, "labels ", element("select", { id: "viewer-labels", oninput: (e) => choose("labels", scene.labels[Number(e.target.value)] || null) }, ...option(scene.labels), new Option("none", "-1"))),
      ...scene.values.map((v) => check(element("span", {}, element("i", { class: "key", "data-colour": v.colour, "data-fill": "" }), v.name), `viewer-label-${v.value}`, true, (e) => {
        if (e.target.checked) state.hidden.delete(v.value); else state.hidden.add(v.value);
        redraw();
      })),
      element("label", {}, "opacity ", element("input", { type: "range", min: "0", max: "100", value: String(100 * state.labelOpacity), id: "viewer-label-opacity", oninput: (e) => { state.labelOpacity = e.target.value / 100; redraw(); } })));
  }

  function placeBar() {
    const there = scene.places.filter((p) => p.at);
    return element("div", { class: "bar" },
      element("span", { class: "group", role: "group", "aria-label": "Findings" },
        button("Previous finding", "Previous finding (P)", () => jump(state.place - 1)), button("Next finding", "Next finding (N)", () => jump(state.place + 1))),
      element("span", { class: "places", role: "group", "aria-label": "Go to a finding" }, ...there.map((p, n) => button(p.name, `Go to ${p.name}: ${p.text}`, () => jump(n)))),
      element("span", { id: "viewer-place", role: "status" }));
  }

  const act = {
    show(value) { if (value !== 3 || slices.renders) { state.shown = value; if (value !== "all" && value !== 3) state.plane = value; redraw(); } },
    whole() { state.zoom = 1; state.centre = [0, 0, 0]; redraw(); },
    window() { state.window = scene.images[windowOf(state.image)].window.slice(); redraw(); },
    convention() { state.radiological = !state.radiological; redraw(); },
    smooth() { state.smooth = !state.smooth; redraw(); },
    cut() { state.cut = !state.cut; redraw(); },
    outline(name) { if (!state.outlines.delete(name)) state.outlines.add(name); redraw(); },
    outlines() {
      const every = scene.outlines.filter((o) => !o.empty).map((o) => o.name);
      state.outlines = new Set(state.outlines.size ? [] : every);
      redraw();
    },
    map() { if (scene.maps.length) choose("map", state.map ? null : scene.maps[0]); },
    beside() { if (others.length > 1) compare(others[others.indexOf(state.beside) + 1]); },
    image() { choose("image", scene.images[(scene.images.indexOf(state.image) + 1) % scene.images.length]); },
    opacity(by) { state.opacity = clamp(state.opacity + by, 0, 1); state.labelOpacity = clamp(state.labelOpacity + by, 0, 1); redraw(); },
    fullscreen() { if (document.fullscreenElement) document.exitFullscreen(); else if (root.requestFullscreen) root.requestFullscreen(); },
    help() {
      if (help && help.open) { help.close(); return; }
      if (help) help.remove();
      help = element("dialog", { class: "help", "aria-label": "Keys and mouse" }, element("h2", {}, "Keys and mouse"),
        element("dl", {}, ...keys().flatMap(([names, text]) => [element("dt", {}, names), element("dd", {}, text)])), button("Close", "Close", () => help.close()));
      root.append(help);
      help.showModal();
    },
  };

  const KEYS = {
    0: () => act.show("all"), 1: () => act.show(0), 2: () => act.show(1), 3: () => act.show(2), 4: () => act.show(3),
    n: () => jump(state.place + 1), p: () => jump(state.place - 1), m: act.map, b: act.beside, o: act.outlines, h: act.image, "[": () => act.opacity(-0.1), "]": () => act.opacity(0.1),
    w: act.window, z: act.whole, r: act.convention, i: act.smooth, c: act.cut, f: act.fullscreen, "?": act.help, "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(1 / 1.25),
    PageUp: () => step(PLANES[state.plane].fixed, 1), PageDown: () => step(PLANES[state.plane].fixed, -1),
  };

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || (help && help.open && event.key !== "?")) return;
    if (event.target.closest("select, textarea, input:not([type=checkbox])")) return;
    const plane = PLANES[state.plane], by = event.shiftKey ? 10 : 1;
    const side = state.radiological && plane.fixed !== 0 ? -1 : 1;
    const arrows = { ArrowUp: [plane.up, by], ArrowDown: [plane.up, -by], ArrowRight: [plane.right, side * by], ArrowLeft: [plane.right, -side * by] };
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (arrows[name] && (document.activeElement === over || document.activeElement === document.body)) step(...arrows[name]);
    else if (KEYS[name]) KEYS[name]();
    else return;
    event.preventDefault();
  }

  // ---- pointer

  const pointers = new Map();
  let held = null;

  function tileAt(event) {
    const box = over.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const tile = tiles.find((t) => x >= t.left && x <= t.left + t.width && y >= t.top && y <= t.top + t.height);
    return { tile, x, y };
  }

  function pick(tile, x, y) {
    const plane = PLANES[tile.plane], at = state.at.slice();
    at[plane.right] = tile.u0 + tile.du * (x - tile.left);
    at[plane.up] = tile.v0 + tile.dv * (y - tile.top);
    moveTo(at);
  }

  function drag(event) {
    const { tile, use } = held, box = over.getBoundingClientRect();
    const [dx, dy] = [event.clientX - held.x, event.clientY - held.y];
    [held.x, held.y] = [event.clientX, event.clientY];
    if (tile.plane === 3) {
      state.azimuth += dx;
      state.elevation = clamp(state.elevation + dy, -90, 90);
      redraw();
    } else if (use === "window") {
      const width = state.window[1] - state.window[0], centre = (state.window[0] + state.window[1]) / 2;
      const wide = width * Math.exp(dx / 150), level = centre + (dy * width) / 300;
      state.window = [level - wide / 2, level + wide / 2];
      redraw();
    } else if (use === "pan") {
      pan(tile, dx, dy);
    } else {
      pick(tile, event.clientX - box.left, event.clientY - box.top);
    }
  }

  function pan(tile, dx, dy) {
    const plane = PLANES[tile.plane], centre = state.centre.slice();
    centre[plane.right] -= dx * tile.du * scene.spacing[plane.right];
    centre[plane.up] -= dy * tile.dv * scene.spacing[plane.up];
    state.centre = centre.map((x, a) => clamp(x, -(scene.shape[a] * scene.spacing[a]) / 2, (scene.shape[a] * scene.spacing[a]) / 2));
    redraw();
  }

  function pinch() {
    const [a, b] = [...pointers.values()], now = Math.hypot(a.x - b.x, a.y - b.y), middle = [(a.x + b.x) / 2, (a.y + b.y) / 2];
    if (held.pinch) {
      const zoom = clamp((state.zoom * now) / held.pinch, 1, 16);
      state.zoom = zoom;
      if (held.tile.plane !== 3) pan(held.tile, middle[0] - held.middle[0], middle[1] - held.middle[1]);
    }
    Object.assign(held, { pinch: now, middle });
  }

  over.addEventListener("pointerdown", (event) => {
    const { tile, x, y } = tileAt(event);
    if (!tile) return;
    over.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const use = event.button === 2 ? "window" : event.button === 1 || event.shiftKey ? "pan" : state.drag;
    held = { tile, use, x: event.clientX, y: event.clientY };
    if (tile.plane !== 3) {
      state.plane = tile.plane;
      if (use === "crosshair") pick(tile, x, y);
    }
  });
  over.addEventListener("pointermove", (event) => {
    if (!held || !pointers.has(event.pointerId)) return;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2) pinch(); else drag(event);
  });
  const release = (event) => { pointers.delete(event.pointerId); if (!pointers.size) held = null; else held.pinch = 0; };
  over.addEventListener("pointerup", release);
  over.addEventListener("pointercancel", release);
  over.addEventListener("contextmenu", (event) => event.preventDefault());
  over.addEventListener("wheel", (event) => {
    const { tile } = tileAt(event);
    if (!tile || tile.plane === 3) return;
    event.preventDefault();
    state.plane = tile.plane;
    if (event.ctrlKey) zoomBy(Math.exp(-event.deltaY / 300)); else step(PLANES[tile.plane].fixed, -Math.sign(event.deltaY));
  }, { passive: false });

  // ---- start

  function build() {
    const sliders = element("div", { class: "sliders" }, ...PLANES.map((p, n) => element("label", {}, `${p.name} slice `, element("input", {
      type: "range", min: "0", max: String(scene.shape[p.fixed] - 1), id: `viewer-slice-${n}`,
      oninput: (e) => { state.plane = n; const at = state.at.slice(); at[p.fixed] = Number(e.target.value); moveTo(at); },
    }))));
    root.replaceChildren(...controls(), stage, sliders, element("p", { class: "read", id: "viewer-read", role: "status" }),
      ...(scene.note ? [element("p", { class: "read" }, scene.note)] : []), ...(failed ? [element("p", { class: "read", id: "viewer-failed" }, failed)] : []), ...(help ? [help] : []));
    // the policy forbids styles in the text of the page, not in its objects
    root.querySelectorAll("[data-colour]").forEach((k) => { k.style.borderColor = k.dataset.colour; if ("fill" in k.dataset) k.style.background = k.dataset.colour; });
  }

  const layer = () => element("canvas", { "aria-hidden": "true", tabindex: "-1" });

  function use(made, canvas) {
    base.replaceWith(canvas);
    base = canvas;
    if (slices) slices.close();
    slices = made;
    if (state.shown === 3 && !slices.renders) state.shown = "all";
    build();
    redraw();
  }

  function onCanvas(reason) {
    root.dataset.reason = reason;
    const canvas = layer();
    use(new CanvasSlices(canvas, scene), canvas);
  }

  // NiiVue starts on a canvas below the one in use, which stays where that fails.
  async function onWebgl() {
    state.beside = null;
    asked = false;
    const canvas = layer();
    root.setAttribute("aria-busy", "true");
    stage.prepend(canvas);
    try {
      use(await NiivueSlices.open(canvas, scene, () => onCanvas("The graphics card stopped drawing.")), canvas);
    } catch (error) {
      canvas.remove();
      webgl = "none";
      failed = error.message;
      onCanvas(failed);
    }
  }

  // "slow" is WebGL without a graphics card: seconds for a rendering, which has to be asked for.
  function kindOfWebgl() {
    const gl = document.createElement("canvas").getContext("webgl2");
    if (!gl) return "none";
    const hidden = gl.getExtension("WEBGL_debug_renderer_info");
    const name = gl.getParameter(hidden ? hidden.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
    return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name) ? "slow" : "fast";
  }

  async function start() {
    const needed = [state.image, state.map, state.labels, ...scene.outlines].filter(Boolean);
    await Promise.all(needed.map(async (layer) => { layer.volume = new Volume(await unpacked(layer.id)); }));
    root.hidden = false;
    root.replaceChildren(stage);
    webgl = kindOfWebgl();
    if (webgl === "fast") await onWebgl();
    else onCanvas(webgl === "slow" ? "WebGL runs without a graphics card." : "WebGL 2 is not available.");
    document.addEventListener("keydown", key);
    document.querySelectorAll("tr[data-place]").forEach((row) => {
      const go = () => { jump(Number(row.dataset.place)); root.scrollIntoView({ block: "center" }); };
      row.tabIndex = 0;
      row.addEventListener("click", go);
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
    });
    new ResizeObserver(redraw).observe(root);
    document.addEventListener("fullscreenchange", redraw);
  }

  start().catch((error) => {
    root.hidden = false;
    root.replaceChildren(element("p", { class: "read", role: "alert" }, `The viewer needs a newer browser (${error.message}); the pictures of this page show the same case.`));
  });
})();
