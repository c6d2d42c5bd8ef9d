// Slices and a rendering drawn by NiiVue; the same interface as `CanvasSlices`.
class NiivueSlices {
  // Throws where NiiVue is not beside the page or cannot start.
  static async open(canvas, scene, lost) {
    if (!window.niivue) await NiivueSlices.load();
    const nv = new niivue.Niivue({
      backColor: [0, 0, 0, 1], clipPlaneColor: [0, 0, 0, 0], crosshairWidth: 0, dragAndDropEnabled: false, interactive: false,
      isOrientationTextVisible: false, logLevel: "error", loadingText: "", show3Dcrosshair: false,
    });
    canvas.addEventListener("webglcontextlost", lost, { once: true });
    await nv.attachToCanvas(canvas, true);
    return new NiivueSlices(nv, canvas, scene);
  }

  // The library: one file for all pages of a folder, read where 3D is asked for.
  static load() {
    return new Promise((done, fail) => {
      const script = document.createElement("script");
      script.addEventListener("load", done);
      script.addEventListener("error", () => fail(new Error("3D needs the file niivue.js, which lies beside this page where it was written.")));
      script.src = "niivue.js";
      document.head.append(script);
    });
  }

  constructor(nv, canvas, scene) {
    this.nv = nv;
    this.canvas = canvas;
    this.scene = scene;
    this.name = "webgl";
    this.renders = true;
    this.images = new Map();
    for (const [name, scale] of Object.entries(scene.scales)) {
      const stops = scale.map(channels), of = (k) => stops.map((c) => Math.round(c[k]));
      // the lowest step is what `hide below` hides
      nv.addColormap(name, {
        R: [0, ...of(0)], G: [0, ...of(1)], B: [0, ...of(2)], A: [0, ...stops.map(() => 255)],
        I: [0, ...stops.map((_, i) => Math.max(1, Math.round((255 * i) / (stops.length - 1))))],
      });
    }
  }

  async ready(layers) {
    for (const layer of layers) {
      if (!this.images.has(layer.id)) this.images.set(layer.id, await niivue.NVImage.new(layer.volume.buffer.slice(0), `${layer.id}.nii`, "gray", 1));
    }
  }

  // The volumes, with their window, colours and opacity, as the state has them.
  async dress(state) {
    const { image, map, labels } = state;
    const layers = [image, map, labels].filter(Boolean);
    await this.ready(layers);
    const volumes = layers.map((layer) => this.images.get(layer.id));
    Object.assign(volumes[0], { cal_min: state.window[0], cal_max: state.window[1] });
    if (map) {
      const volume = this.images.get(map.id);
      volume.colormap = map.colours;
      Object.assign(volume, { cal_min: state.floor, cal_max: state.top, opacity: state.opacity });
    }
    if (labels) {
      const volume = this.images.get(labels.id);
      const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
      for (const [value, colour] of state.labelColours) {
        table.R.push(colour[0]); table.G.push(colour[1]); table.B.push(colour[2]);
        table.A.push(state.hidden.has(value) ? 0 : 255);
        table.I.push(value); table.labels.push("");
      }
      volume.setColormapLabel(table);
      volume.opacity = state.labelOpacity;
    }
    this.nv.volumes = volumes;
    this.nv.opts.isNearestInterpolation = !state.smooth;
    this.nv.setVolume(volumes[0], 0);
  }

  async draw(state, rects) {
    const { nv, scene } = this, box = this.canvas.parentElement.getBoundingClientRect();
    const look = JSON.stringify([state.image.id, state.map && state.map.id, state.labels && state.labels.id, state.window,
      state.floor, state.top, state.opacity, state.labelOpacity, [...state.hidden], state.smooth]);
    // the stage may have another height since the last picture, which NiiVue would notice later
    const dpr = nv.uiData.dpr || 1;
    if (Math.abs(this.canvas.height - box.height * dpr) > 1 || Math.abs(this.canvas.width - box.width * dpr) > 1) nv.resizeListener();
    nv.opts.isRadiologicalConvention = state.radiological;
    nv.scene.pan2Dxyzmm = [...state.centre.map((x) => -x * state.zoom), state.zoom];
    nv.scene.crosshairPos = state.at.map((i, a) => (i + 0.5) / scene.shape[a]);
    nv.scene.renderAzimuth = state.azimuth;
    nv.scene.renderElevation = state.elevation;
    nv.customLayout = rects.map((r) => ({
      sliceType: r.plane === 3 ? 4 : r.plane,
      position: [r.left / box.width, r.top / box.height, r.width / box.width, r.height / box.height],
    }));
    if (look !== this.look) {
      this.look = look;
      await this.dress(state);
    }
    nv.setClipPlane(state.cut ? this.cut(state) : [2, 0, 0]);
    return nv.screenSlices.map((s) => this.tile(s, nv.uiData.dpr || 1));
  }

  // Everything between the camera and the crosshair is cut away: NiiVue drops points p of the unit
  // cube with n · (p - 1/2) + depth < 0, where n comes from the angles; here n is the line of sight.
  cut(state) {
    const [azimuth, elevation] = [state.azimuth, state.elevation].map((x) => (x * Math.PI) / 180);
    const sight = [Math.sin(azimuth) * Math.cos(elevation), Math.cos(azimuth) * Math.cos(elevation), -Math.sin(elevation)];
    const at = state.at.map((i, a) => (i + 0.5) / this.scene.shape[a] - 0.5);
    return [-at.reduce((sum, x, a) => sum + x * sight[a], 0), -state.azimuth, state.elevation];
  }

  tile(slice, dpr) {
    const [left, top, width, height] = slice.leftTopWidthHeight.map((x) => x / dpr);
    if (slice.axCorSag > 2) return { plane: 3, left, top, width, height };
    const plane = PLANES[slice.axCorSag], tile = { plane: slice.axCorSag, left, top, width, height };
    const [low, up] = slice.leftTopMM, [w, h] = slice.fovMM;
    tile.u0 = voxelOf(this.scene, plane.right, low);
    tile.v0 = voxelOf(this.scene, plane.up, up + h);
    tile.du = w / width / this.scene.spacing[plane.right];
    tile.dv = -h / height / this.scene.spacing[plane.up];
    return tile;
  }

  close() {
    this.nv.cleanup();
  }
}
