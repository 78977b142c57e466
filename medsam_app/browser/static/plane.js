/**
 * One plane of two canvases: picture and masks below, crosshair, prompts and marks above.
 *
 * Moving the crosshair redraws only the canvas that changed. A plane never contacts the server: it reads the
 * viewer's state; pointer.js handles its pointer events.
 */

import { h } from "./dom.js";
import { PLANES } from "./geometry.js";
import { project } from "./projection.js";
import { drawBoxes, drawCrosshair, drawLabels, drawPoints } from "./overlay.js";

const MIN_ZOOM = 0.5;
const MAX_ZOOM = 24;

export class PlaneView {
  /**
   * @param {string} plane "axial", "coronal" or "sagittal"
   * @param {import("./viewer.js").Viewer} viewer
   */
  constructor(plane, viewer) {
    this.plane = plane;
    this.viewer = viewer;
    this.axes = PLANES[plane];
    this.picture = h("canvas.picture", { "aria-hidden": "true" });
    this.overlay = h("canvas.overlay", {
      tabIndex: 0,
      role: "img",
      "aria-label": `${this.axes.name} plane`,
      "aria-description": "Up and down change the slice, Shift and arrows move the crosshair within it. Enter clicks inside an object, Shift Enter outside it.",
      "data-plane": plane,
    });
    this.thumb = h("div.thumb");
    this.rail = h("div.rail", { title: "Drag to scroll" }, this.thumb);
    this.element = h("div.pane", { "data-plane": plane }, this.picture, this.overlay, this.rail);
    this.pictureContext = this.picture.getContext("2d", { alpha: false });
    this.overlayContext = this.overlay.getContext("2d");
    this.zoom = 1;
    this.pan = [0, 0];
    this.width = 0;
    this.height = 0;
    this.dirtyPicture = true;
    this.dirtyOverlay = true;
    this.pixels = null;
    this.painted = "";
  }

  /** Prepare for a new volume: allocate the slice's pixels, reset zoom and pan. */
  reset() {
    const { shape } = this.viewer.geometry;
    this.columns = shape[this.axes.u];
    this.rows = shape[this.axes.v];
    this.slice = new OffscreenCanvas(this.columns, this.rows);
    this.sliceContext = this.slice.getContext("2d", { alpha: false });
    this.image = this.sliceContext.createImageData(this.columns, this.rows);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.painted = "";
    this.fit();
  }

  fit() {
    this.zoom = 1;
    this.pan = [0, 0];
    this.invalidate();
  }

  invalidate(picture = true) {
    this.dirtyPicture ||= picture;
    this.dirtyOverlay = true;
    this.viewer.requestDraw();
  }

  /** Resize the canvases to the element, with one pixel per device pixel. */
  resize() {
    const box = this.element.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    this.width = box.width;
    this.height = box.height;
    for (const canvas of [this.picture, this.overlay]) {
      canvas.width = Math.max(1, Math.round(box.width * ratio));
      canvas.height = Math.max(1, Math.round(box.height * ratio));
    }
    this.ratio = ratio;
    this.invalidate();
  }

  /** Index of the slice shown. */
  get index() {
    return this.viewer.crosshair[this.axes.w];
  }

  get sliceCount() {
    return this.viewer.geometry.shape[this.axes.w];
  }

  /** Scale in CSS pixels per voxel (sx, sy) and per mm (scale), and the left and top edge of the slice. */
  get transform() {
    const { spacing } = this.viewer.geometry;
    const su = spacing[this.axes.u];
    const sv = spacing[this.axes.v];
    const roomX = this.width - 44;
    const roomY = this.height - 44;
    const scale = Math.min(roomX / (this.columns * su), roomY / (this.rows * sv)) * this.zoom;
    const sx = su * scale;
    const sy = sv * scale;
    const left = this.width / 2 + this.pan[0] - (this.columns * sx) / 2;
    const top = this.height / 2 + this.pan[1] - (this.rows * sy) / 2;
    return { sx, sy, left, top, scale };
  }

  /** Screen position (CSS pixels inside the pane) of RAS voxel indices. */
  toScreen(xyz) {
    const { sx, sy, left, top } = this.transform;
    return [left + (this.columns - 0.5 - xyz[this.axes.u]) * sx, top + (this.rows - 0.5 - xyz[this.axes.v]) * sy];
  }

  /** RAS voxel indices (fractional) under a screen position, on the slice shown. */
  toVoxel(x, y) {
    const { sx, sy, left, top } = this.transform;
    const xyz = [0, 0, 0];
    xyz[this.axes.u] = this.columns - 0.5 - (x - left) / sx;
    xyz[this.axes.v] = this.rows - 0.5 - (y - top) / sy;
    xyz[this.axes.w] = this.index;
    return xyz;
  }

  /** Zoom by a factor; the voxel under (x, y) stays in place. */
  zoomAt(factor, x, y) {
    const before = this.toVoxel(x, y);
    this.zoom = Math.max(MIN_ZOOM, Math.min(MAX_ZOOM, this.zoom * factor));
    const [nx, ny] = this.toScreen(before);
    this.pan = [this.pan[0] + x - nx, this.pan[1] + y - ny];
    this.invalidate();
  }

  draw() {
    if (!this.viewer.image || this.width < 2) return;
    if (this.dirtyPicture) this.drawPicture();
    if (this.dirtyOverlay) this.drawOverlay();
    this.dirtyPicture = false;
    this.dirtyOverlay = false;
  }

  /** Update the pixels of the slice or slab. */
  paintSlice() {
    const { image, projection } = this.viewer;
    const [from, to] = projection.on ? projection.range(this.plane, this.index) : [this.index, this.index];
    const slab = projection.on ? `${projection.kind}:${from}:${to}` : `${from}`;
    const state = `${slab}:${image.windowVersion}`;
    if (state === this.painted) return;
    if (!projection.on) image.paint(this.plane, this.index, this.pixels);
    else {
      // Cache the projection: changing the window of the same slab is then fast.
      if (this.slab?.image !== image || this.slab.id !== slab) this.slab = { image, id: slab, values: project(image, this.plane, from, to, projection.kind) };
      image.paintValues(this.slab.values, this.pixels);
    }
    this.sliceContext.putImageData(this.image, 0, 0);
    this.painted = state;
  }

  drawPicture() {
    const { view } = this.viewer;
    this.paintSlice();
    const context = this.pictureContext;
    const { sx, sy, left, top } = this.transform;
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.fillStyle = "#05070a";
    context.fillRect(0, 0, this.width, this.height);
    context.imageSmoothingEnabled = Math.min(sx, sy) < 12;
    context.imageSmoothingQuality = "medium";
    context.drawImage(this.slice, left, top, this.columns * sx, this.rows * sy);
    if (!view.masksHidden) this.drawMasks(context);
    this.viewer.heat.draw(context, this);
    for (const layer of this.viewer.overlays) layer.drawUnder?.(context, this);
    this.thumb.style.top = `${(100 * (this.sliceCount - 1 - this.index)) / Math.max(1, this.sliceCount - 1)}%`;
  }

  drawMasks(context) {
    const { view, geometry } = this.viewer;
    const { sx, sy, left, top } = this.transform;
    for (const { mask, colour, selected } of this.viewer.visibleMasks()) {
      const drawing = mask.drawing(this.plane, this.index, colour);
      if (!drawing) continue;
      const [du, dv] = mask.offset(this.plane, geometry.shape);
      const x = left + du * sx;
      const y = top + dv * sy;
      context.imageSmoothingEnabled = false;
      context.globalAlpha = this.viewer.recoloured ? 0 : view.opacity; // never two colourings on top of each other
      context.drawImage(drawing.fill, x, y, drawing.fill.width * sx, drawing.fill.height * sy);
      context.globalAlpha = 1;
      if (!view.outline) continue;
      const path = new Path2D();
      path.addPath(drawing.outline, new DOMMatrix([sx, 0, 0, sy, x, y]));
      context.strokeStyle = colour;
      context.lineWidth = selected ? 1.75 : 1.1;
      context.stroke(path);
    }
  }

  drawOverlay() {
    const context = this.overlayContext;
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    if (this.viewer.view.crosshair || this.viewer.keyboard.plane) drawCrosshair(context, this);
    for (const layer of this.viewer.overlays) layer.drawOver?.(context, this);
    drawBoxes(context, this);
    this.viewer.edit.draw(context, this);
    drawPoints(context, this);
    drawLabels(context, this);
  }
}
