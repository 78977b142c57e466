/** Heat map of the model's uncertainty about the selected object, and the best place for the next click. */

import { byHand } from "./dom.js";
import { PLANES } from "./geometry.js";
import { drawBadge } from "./overlay.js";

/** Uncertainty (0 to 255) below this is not drawn, since most voxels have a little. */
const LEAST = 38;

/** RGBA colour ramp from violet to yellow. It gets steadily lighter, so it can be read without colour vision. */
const RAMP = [[92, 32, 130, 90], [200, 60, 110, 150], [250, 140, 70, 185], [255, 238, 130, 210]];

function colourOf(fraction) {
  const at = Math.min(fraction * (RAMP.length - 1), RAMP.length - 1.001);
  const low = Math.floor(at);
  return RAMP[low].map((value, n) => value + (at - low) * (RAMP[low + 1][n] - value));
}

export class Heat {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.on = false;
    this.known = null; // key of the mask that the map belongs to
    this.map = null;
    this.loading = Promise.resolve();
    this.blank = new Set(); // planes whose current slice has no uncertainty to draw
    viewer.overlays.push(this);
  }

  get shown() {
    return this.on && this.map !== null;
  }

  toggle() {
    this.on = !this.on;
    this.viewer.toolbar.updateState();
    this.viewer.redraw();
    return this.on ? this.load() : undefined;
  }

  /** Drop or reload the map after the state has changed. */
  follow() {
    if (this.maskKey() === this.known) return;
    this.known = this.map = null;
    if (this.on && this.maskKey() && !byHand(this.viewer.selected)) this.load();
  }

  /** Move the crosshair to the voxel of highest uncertainty. */
  async jump() {
    await this.load();
    if (!this.map) return;
    if (this.map.worst) this.viewer.setCrosshair(this.map.worst);
    else this.viewer.toasts.show("The model is in no doubt about this object.");
  }

  /** Key of the selected object and its mask; null without a mask. */
  maskKey() {
    const object = this.viewer.selected;
    return object?.mask ? `${object.id}:${object.mask}` : null;
  }

  /** Load the map unless it is current. Requests run one at a time. */
  load() {
    this.loading = this.loading.then(async () => {
      const key = this.maskKey();
      if (!key) return this.viewer.toasts.show("This object has no mask yet; click inside it first.");
      if (byHand(this.viewer.selected)) return this.viewer.toasts.show("This mask was made by hand; the model has no doubt to show before a click.");
      if (key === this.known) return undefined;
      return this.viewer.watch("Looking for doubt", async () => {
        const { worst, masks } = await this.viewer.api.doubt(this.viewer.selected.id);
        if (key !== this.maskKey()) return;
        const [{ start, size, bits }] = masks;
        this.known = key;
        this.map = { worst, start, size, values: bits };
        this.viewer.redraw();
      }, false);
    });
    return this.loading;
  }

  /** @param {CanvasRenderingContext2D} context @param {import("./plane.js").PlaneView} plane */
  draw(context, plane) {
    this.blank.delete(plane.plane);
    if (!this.shown) return;
    const picture = this.slice(plane);
    if (!picture) return void this.blank.add(plane.plane);
    const { start, size } = this.map;
    const { u, v } = plane.axes;
    const { shape } = this.viewer.geometry;
    const { sx, sy, left, top } = plane.transform;
    const x = left + (shape[u] - start[u] - size[u]) * sx;
    const y = top + (shape[v] - start[v] - size[v]) * sy;
    context.imageSmoothingEnabled = true;
    context.drawImage(picture, x, y, picture.width * sx, picture.height * sy);
  }

  /** On a slice without uncertainty, draw a badge that says so and names the key to the worst place. */
  drawOver(context, plane) {
    if (!this.blank.has(plane.plane)) return;
    const short = plane.width < 400;
    const way = this.map.worst ? (short ? "; press J" : "; press J for the place of most doubt") : " nor elsewhere";
    const row = Number(this.viewer.projection.on) + Number(this.viewer.edit.isLocked(this.viewer.edit.slice(plane)));
    drawBadge(context, `No doubt ${short ? "here" : "in this slice"}${way}`, row);
  }

  /** One slice as a coloured canvas, both axes reversed like the picture; null if there is nothing to draw. */
  slice(plane) {
    const { u, v, w } = PLANES[plane.plane];
    const { start, size, values } = this.map;
    const depth = plane.index - start[w];
    if (depth < 0 || depth >= size[w]) return null;
    const strides = [1, size[0], size[0] * size[1]];
    const canvas = new OffscreenCanvas(size[u], size[v]);
    const context = canvas.getContext("2d");
    const image = context.createImageData(size[u], size[v]);
    let out = 0;
    let empty = true;
    for (let row = size[v] - 1; row >= 0; row--) {
      for (let column = size[u] - 1; column >= 0; column--, out += 4) {
        const value = values[depth * strides[w] + row * strides[v] + column * strides[u]];
        if (value < LEAST) continue;
        empty = false;
        image.data.set(colourOf((value - LEAST) / (255 - LEAST)), out);
      }
    }
    if (empty) return null;
    context.putImageData(image, 0, 0);
    return canvas;
  }
}
