/** Where the model is in doubt about the selected object: a heat map, and the place to click next. */

import { byHand } from "./dom.js";
import { PLANES } from "./geometry.js";
import { drawBadge } from "./overlay.js";

/** Doubt below this is not drawn; most voxels have a little. */
const LEAST = 38;

/** From violet to yellow, lighter all the way, so that it reads without colour too: red, green, blue, opacity. */
const RAMP = [[92, 32, 130, 90], [200, 60, 110, 150], [250, 140, 70, 185], [255, 238, 130, 210]];

function colourOf(far) {
  const at = Math.min(far * (RAMP.length - 1), RAMP.length - 1.001);
  const low = Math.floor(at);
  return RAMP[low].map((value, n) => value + (at - low) * (RAMP[low + 1][n] - value));
}

export class Heat {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.on = false;
    this.known = null; // what the map belongs to
    this.map = null;
    this.asked = Promise.resolve();
    this.blank = new Set(); // planes whose slice has nothing to draw
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

  /** The state has changed: what is drawn no longer holds. */
  follow() {
    if (this.wanted() === this.known) return;
    this.known = this.map = null;
    if (this.on && this.wanted() && !byHand(this.viewer.selected)) this.load();
  }

  /** Move the crosshair to the place where a click says most. */
  async jump() {
    await this.load();
    if (!this.map) return;
    if (this.map.worst) this.viewer.setCrosshair(this.map.worst);
    else this.viewer.toasts.show("The model is in no doubt about this object.");
  }

  /** What a map would belong to now: an object with this mask. */
  wanted() {
    const object = this.viewer.selected;
    return object?.mask ? `${object.id}:${object.mask}` : null;
  }

  /** Ask for the map unless it is there; one request at a time. */
  load() {
    this.asked = this.asked.then(async () => {
      const wanted = this.wanted();
      if (!wanted) return this.viewer.toasts.show("This object has no mask yet; click inside it first.");
      if (byHand(this.viewer.selected)) return this.viewer.toasts.show("This mask was made by hand; the model has no doubt to show before a click.");
      if (wanted === this.known) return undefined;
      return this.viewer.watch("Looking for doubt", async () => {
        const { worst, masks } = await this.viewer.api.doubt(this.viewer.selected.id);
        if (wanted !== this.wanted()) return;
        const [{ start, size, bits }] = masks;
        this.known = wanted;
        this.map = { worst, start, size, values: bits };
        this.viewer.redraw();
      }, false);
    });
    return this.asked;
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

  /** Where there is nothing to see, that is said, and the way to where there is. */
  drawOver(context, plane) {
    if (!this.blank.has(plane.plane)) return;
    const short = plane.width < 400;
    const way = this.map.worst ? (short ? "; press J" : "; press J for the place of most doubt") : " nor elsewhere";
    const row = Number(this.viewer.projection.on) + Number(this.viewer.edit.isLocked(this.viewer.edit.slice(plane)));
    drawBadge(context, `No doubt ${short ? "here" : "in this slice"}${way}`, row);
  }

  /** One slice as colours, both axes reversed like the picture; null where nothing is to be drawn. */
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
    let any = false;
    for (let row = size[v] - 1; row >= 0; row--) {
      for (let column = size[u] - 1; column >= 0; column--, out += 4) {
        const value = values[depth * strides[w] + row * strides[v] + column * strides[u]];
        if (value < LEAST) continue;
        any = true;
        image.data.set(colourOf((value - LEAST) / (255 - LEAST)), out);
      }
    }
    if (!any) return null;
    context.putImageData(image, 0, 0);
    return canvas;
  }
}
