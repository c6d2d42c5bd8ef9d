"use strict";
// Three orthogonal slices of a volume with a map over it. Volumes are uint8, gzip, base64, axes R, A, S.
(() => {
  const cases = JSON.parse(document.getElementById("cases").textContent);
  const root = document.getElementById("viewer");
  const $ = (name) => root.querySelector(`[data-id="${name}"]`);
  // The axis that is fixed, the one to the right and the one upwards of each pane.
  const PANES = [
    { fixed: 2, right: 0, up: 1, ends: ["L", "R", "P", "A"] },
    { fixed: 1, right: 0, up: 2, ends: ["L", "R", "I", "S"] },
    { fixed: 0, right: 1, up: 2, ends: ["P", "A", "I", "S"] },
  ];
  const TRUTH = [47, 224, 255], FOUND = [140, 255, 102];
  const state = { at: [0, 0, 0], shown: null, layers: {} };

  async function unpacked(id) {
    const text = document.getElementById(id).textContent;
    const packed = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Black, dark red, orange, yellow: monotone in lightness, visible on grey tissue.
  function heat(v) {
    return [Math.min(255, 90 + 330 * v), Math.max(0, 255 * (1.25 * v - 0.2)), Math.max(0, 230 * (v - 0.75))];
  }

  function offset(shape, i, j, k) {
    return (i * shape[1] + j) * shape[2] + k;
  }

  function draw() {
    const c = state.shown;
    if (!c) return;
    const { image, healthy, truth, found } = state.layers;
    const map = state.layers[$("map").value];
    const base = $("healthy").checked && healthy ? healthy : image;
    const opacity = Number($("opacity").value) / 100;
    const floor = Number($("floor").value) / 100;
    // outlines with their colours; the lesion is drawn over the finding
    const outlines = [[$("found").checked && found, FOUND], [$("truth").checked && truth, TRUTH]].filter((o) => o[0]);
    PANES.forEach((pane, n) => {
      const [w, h] = [c.shape[pane.right], c.shape[pane.up]];
      const index = (x, y) => {
        const p = [0, 0, 0];
        p[pane.fixed] = state.at[pane.fixed];
        p[pane.right] = x;
        p[pane.up] = h - 1 - y;
        return offset(c.shape, p[0], p[1], p[2]);
      };
      const scale = Math.max(1, Math.ceil(420 / w));
      const pixels = new ImageData(w * scale, h * scale);
      for (let y = 0; y < h; y++) {
        for (let x = 0; x < w; x++) {
          const at = index(x, y);
          let [r, g, b] = [base[at], base[at], base[at]];
          const v = map ? map[at] / 255 : 0;
          if (v > floor) {
            const a = opacity * Math.min(1, 0.35 + v);
            const [hr, hg, hb] = heat(v);
            r += a * (hr - r);
            g += a * (hg - g);
            b += a * (hb - b);
          }
          const rim = Math.max(1, Math.round(scale / 3));
          const edges = outlines.filter(([mask]) => mask[at]).map(([mask, colour]) => ({
            colour,
            left: x === 0 || mask[index(x - 1, y)] !== mask[at],
            right: x === w - 1 || mask[index(x + 1, y)] !== mask[at],
            up: y === 0 || mask[index(x, y - 1)] !== mask[at],
            down: y === h - 1 || mask[index(x, y + 1)] !== mask[at],
          }));
          for (let sy = 0; sy < scale; sy++) {
            for (let sx = 0; sx < scale; sx++) {
              const o = 4 * ((y * scale + sy) * w * scale + x * scale + sx);
              let colour = [r, g, b];
              for (const e of edges) {
                if ((e.left && sx < rim) || (e.right && sx >= scale - rim) || (e.up && sy < rim) || (e.down && sy >= scale - rim)) colour = e.colour;
              }
              pixels.data[o] = colour[0];
              pixels.data[o + 1] = colour[1];
              pixels.data[o + 2] = colour[2];
              pixels.data[o + 3] = 255;
            }
          }
        }
      }
      paint(n, pane, pixels, scale, w, h);
    });
    const at = state.at;
    const here = offset(c.shape, at[0], at[1], at[2]);
    const value = map ? c.low[$("map").value] + (map[here] / 255) * (c.high[$("map").value] - c.low[$("map").value]) : NaN;
    $("read").textContent = `voxel ${at.join(", ")}` + millimetres(c, at) + (map ? ` · ${$("map").value} ${value.toPrecision(3)}` : "") +
      (c.labels ? ` · truth ${truth[here]}` + (found ? `, segmentation ${found[here]}` : "")
        : (truth ? (truth[here] ? " · inside the lesion" : " · outside the lesion") : "") + (found && found[here] ? " · inside a finding" : "")) + (c.note ? ` · ${c.note}` : "");
  }

  // RAS millimetres of a voxel of the page, which may be one of several of the file.
  function millimetres(c, at) {
    if (!c.affine) return "";
    const v = at.map((i, a) => i * c.step[a]);
    const mm = [0, 1, 2].map((r) => c.affine[r][0] * v[0] + c.affine[r][1] * v[1] + c.affine[r][2] * v[2] + c.affine[r][3]);
    return ` (${mm.map((x) => x.toFixed(0)).join(", ")} mm)`;
  }

  function paint(n, pane, pixels, scale, w, h) {
    const c = state.shown;
    const canvas = $(`pane${n}`);
    canvas.width = pixels.width;
    canvas.height = pixels.height;
    canvas.style.setProperty("aspect-ratio", `${w * c.spacing[pane.right]} / ${h * c.spacing[pane.up]}`);
    const g = canvas.getContext("2d");
    g.putImageData(pixels, 0, 0);
    const x = (state.at[pane.right] + 0.5) * scale;
    const y = (h - 1 - state.at[pane.up] + 0.5) * scale;
    g.strokeStyle = "rgba(120, 200, 120, 0.55)";
    g.lineWidth = 1;
    g.beginPath();
    g.moveTo(x, 0); g.lineTo(x, canvas.height); g.moveTo(0, y); g.lineTo(canvas.width, y);
    g.stroke();
    g.fillStyle = "#cfd9e2";
    g.font = `${Math.round(canvas.width / 26)}px system-ui, sans-serif`;
    const [left, right, low, high] = pane.ends;
    g.textBaseline = "middle";
    g.textAlign = "left"; g.fillText(left, 4, canvas.height / 2);
    g.textAlign = "right"; g.fillText(right, canvas.width - 4, canvas.height / 2);
    g.textAlign = "center"; g.textBaseline = "top"; g.fillText(high, canvas.width / 2, 4);
    g.textBaseline = "bottom"; g.fillText(low, canvas.width / 2, canvas.height - 4);
    $(`slide${n}`).max = c.shape[pane.fixed] - 1;
    $(`slide${n}`).value = state.at[pane.fixed];
  }

  async function show(number) {
    const c = cases[number];
    const names = Object.keys(c.layers);
    const volumes = await Promise.all(names.map((name) => unpacked(c.layers[name])));
    state.layers = Object.fromEntries(names.map((name, i) => [name, volumes[i]]));
    const select = $("map"), before = select.value;
    select.replaceChildren(...c.maps.map((name) => new Option(name, name)));
    if (c.maps.includes(before)) select.value = before;
    $("healthy").disabled = !state.layers.healthy;
    $("truth").disabled = !state.layers.truth;
    $("found").disabled = !state.layers.found;
    if (!state.shown && (c.labels || !state.layers.truth)) $("found").checked = Boolean(state.layers.found);
    // one scale for all planes: each is as wide as its extent in millimetres
    const wide = PANES.map((p) => c.shape[p.right] * c.spacing[p.right]);
    root.querySelector(".panes").style.setProperty("grid-template-columns", window.innerWidth > 720 ? wide.map((w) => `minmax(0, ${w}fr)`).join(" ") : "1fr");
    state.at = c.start.slice();
    state.shown = c;
    draw();
  }

  function pick(n, event) {
    const c = state.shown, pane = PANES[n], canvas = $(`pane${n}`);
    if (!c) return;
    const box = canvas.getBoundingClientRect();
    const [w, h] = [c.shape[pane.right], c.shape[pane.up]];
    const clip = (v, m) => Math.max(0, Math.min(m - 1, Math.floor(v)));
    state.at[pane.right] = clip(((event.clientX - box.left) / box.width) * w, w);
    state.at[pane.up] = h - 1 - clip(((event.clientY - box.top) / box.height) * h, h);
    draw();
  }

  PANES.forEach((pane, n) => {
    const canvas = $(`pane${n}`);
    canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); pick(n, e); });
    canvas.addEventListener("pointermove", (e) => { if (e.buttons) pick(n, e); });
    canvas.addEventListener("wheel", (e) => {
      if (!state.shown) return;
      e.preventDefault();
      const last = state.shown.shape[pane.fixed] - 1;
      state.at[pane.fixed] = Math.max(0, Math.min(last, state.at[pane.fixed] - Math.sign(e.deltaY)));
      draw();
    }, { passive: false });
    $(`slide${n}`).addEventListener("input", (e) => { state.at[pane.fixed] = Number(e.target.value); draw(); });
  });
  document.querySelectorAll("tr[data-at]").forEach((row) => row.addEventListener("click", async () => {
    if (!row.dataset.at) return;
    const number = Number(row.dataset.view);
    $("case").value = String(number);
    await show(number);
    state.at = row.dataset.at.split(" ").map((i, a) => Math.min(state.shown.shape[a] - 1, Math.floor(Number(i) / state.shown.step[a])));
    draw();
    root.scrollIntoView({ block: "center" });
  }));
  ["map", "opacity", "floor", "truth", "found", "healthy"].forEach((name) => $(name).addEventListener("input", draw));
  $("case").replaceChildren(...cases.map((c, i) => new Option(c.title, i)));
  $("case").addEventListener("input", (e) => show(Number(e.target.value)));
  root.hidden = false;
  show(0).catch((error) => { $("read").textContent = `The viewer needs a newer browser (${error.message}); the pictures below show the same cases.`; });
})();
