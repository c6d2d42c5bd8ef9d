"use strict";
// Slices drawn on a plain canvas, where WebGL is not there.
//
// Both kinds of slices have the same interface: `draw(state, rects)` draws the planes of `rects`
// (CSS pixels; `of` is the state of the layers of this one) and returns one tile for each,
//   {plane, side, left, top, width, height, u0, v0, du, dv},
// where the voxel at a pixel is u = u0 + du (x - left), v = v0 + dv (y - top); voxel i reaches
// from i - 1/2 to i + 1/2. Planes: the axis that is fixed, the one to the right, the one upwards.
const PLANES = [
  { name: "axial", fixed: 2, right: 0, up: 1 },
  { name: "coronal", fixed: 1, right: 0, up: 2 },
  { name: "sagittal", fixed: 0, right: 1, up: 2 },
];

// The voxel that a point of the scene's own grid, centred at zero, lies in, as a real number.
const voxelOf = (scene, axis, mm) => mm / scene.spacing[axis] + (scene.shape[axis] - 1) / 2;

function channels(colour) {
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

// A colour scale at 0 to 1, linear between its colours.
function colourAt(scale, v) {
  const place = Math.min(1, Math.max(0, v)) * (scale.length - 1), i = Math.min(scale.length - 2, Math.floor(place));
  const [a, b] = [channels(scale[i]), channels(scale[i + 1])];
  return a.map((x, k) => x + (place - i) * (b[k] - x));
}

class CanvasSlices {
  constructor(canvas, scene) {
    this.canvas = canvas;
    this.scene = scene;
    this.name = "canvas";
    this.renders = false;
    this.tables = Object.fromEntries(Object.entries(scene.scales).map(([name, scale]) =>
      [name, Array.from({ length: 256 }, (_, i) => colourAt(scale, i / 255))]));
    this.slab = document.createElement("canvas");
  }

  draw(state, rects) {
    const dpr = window.devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.round(box.width * dpr);
    this.canvas.height = Math.round(box.height * dpr);
    const g = this.canvas.getContext("2d");
    g.fillStyle = "#000";
    g.fillRect(0, 0, this.canvas.width, this.canvas.height);
    return rects.map((rect) => {
      const tile = this.tile(state, rect);
      this.slice(rect.of, PLANES[tile.plane]);
      g.save();
      g.setTransform(dpr, 0, 0, dpr, 0, 0);
      g.beginPath();
      g.rect(tile.left, tile.top, tile.width, tile.height);
      g.clip();
      g.transform(1 / tile.du, 0, 0, 1 / tile.dv, tile.left - (tile.u0 + 0.5) / tile.du, tile.top - (tile.v0 + 0.5) / tile.dv);
      g.imageSmoothingEnabled = state.smooth;
      g.drawImage(this.slab, 0, 0);
      g.restore();
      return tile;
    });
  }

  // The plane as large as the rectangle allows, with square millimetres.
  tile(state, rect) {
    const plane = PLANES[rect.plane], scene = this.scene;
    const [w, h] = [plane.right, plane.up].map((axis) => scene.shape[axis] * scene.spacing[axis]);
    const scale = Math.min(rect.width / w, rect.height / h);
    const tile = { plane: rect.plane, side: rect.side, width: w * scale, height: h * scale };
    tile.left = rect.left + (rect.width - tile.width) / 2;
    tile.top = rect.top + (rect.height - tile.height) / 2;
    const side = state.radiological && plane.fixed !== 0 ? -1 : 1;
    const perPixel = 1 / (scale * state.zoom);
    tile.du = (side * perPixel) / scene.spacing[plane.right];
    tile.dv = -perPixel / scene.spacing[plane.up];
    tile.u0 = voxelOf(scene, plane.right, state.centre[plane.right]) - (tile.du * tile.width) / 2;
    tile.v0 = voxelOf(scene, plane.up, state.centre[plane.up]) - (tile.dv * tile.height) / 2;
    return tile;
  }

  // Image, map and labels of a plane, a pixel per voxel.
  slice(state, plane) {
    const { scene } = this, [d, h] = scene.shape;
    const size = [scene.shape[plane.right], scene.shape[plane.up]];
    const strides = [1, d, d * h];
    const { image, map, labels } = state, [low, high] = state.window;
    const table = map && this.tables[map.colours];
    const pixels = new ImageData(size[0], size[1]);
    let o = 0;
    for (let v = 0; v < size[1]; v++) {
      for (let u = 0; u < size[0]; u++) {
        const at = state.at[plane.fixed] * strides[plane.fixed] + u * strides[plane.right] + v * strides[plane.up];
        const grey = 255 * Math.min(1, Math.max(0, (image.volume.value(at) - low) / (high - low)));
        let colour = [grey, grey, grey];
        const over = (other, opacity) => { colour = colour.map((c, k) => c + opacity * (other[k] - c)); };
        if (map) {
          const value = map.volume.value(at);
          if (value > state.floor) over(table[Math.round(255 * Math.min(1, (value - state.floor) / (state.top - state.floor)))], state.opacity);
        }
        if (labels) {
          const label = labels.volume.value(at);
          if (label && !state.hidden.has(label)) over(state.labelColours.get(label), state.labelOpacity);
        }
        pixels.data[o++] = colour[0];
        pixels.data[o++] = colour[1];
        pixels.data[o++] = colour[2];
        pixels.data[o++] = 255;
      }
    }
    this.slab.width = size[0];
    this.slab.height = size[1];
    this.slab.getContext("2d").putImageData(pixels, 0, 0);
  }

  close() {}
}
