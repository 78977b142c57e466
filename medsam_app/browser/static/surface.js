/**
 * 3D view of the objects' surfaces together with the three slices.
 *
 * The graphics card receives coordinates in mm (RAS). The projection is parallel, so that lengths can be compared
 * at any depth. Drag rotates, wheel zooms, right drag pans, a click on a surface moves the crosshair.
 */

import { h } from "./dom.js";
import { PLANES } from "./geometry.js";
import { Painter } from "./surface_painter.js";
import { frontView, hitPoint, multiply, project, turn } from "./surface_view.js";

const CLICK_PIXELS = 4;
const MOST_MESHES = 24;
const FONT = '600 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
/** Letters and directions of the patient's axes. */
const LETTERS = [["R", [1, 0, 0]], ["L", [-1, 0, 0]], ["A", [0, 1, 0]], ["P", [0, -1, 0]], ["S", [0, 0, 1]], ["I", [0, 0, -1]]];

export class SurfaceView {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.on = false;
    this.planesShown = true;
    this.meshes = new Map(); // mask key to mesh
    this.last = new Map(); // object id to the key of its last mesh
    this.loading = null;
    this.camera = null;
    this.picture = h("canvas.picture", { "aria-hidden": "true" });
    this.overlay = h("canvas.overlay", { tabIndex: 0, role: "img", "aria-label": "Surfaces of the objects. Arrows turn, plus and minus zoom" });
    this.message = h("p.pane-message", { hidden: true, role: "status" });
    this.element = h("div.pane.surface", { "data-plane": "surface", hidden: true }, this.picture, this.overlay, this.message);
    this.context = this.overlay.getContext("2d");
    this.listen();
  }

  toggle() {
    this.on = !this.on;
    this.element.hidden = !this.on;
    this.viewer.stage.firstChild.dataset.surface = this.on ? "on" : "";
    if (this.on) {
      this.painter ??= this.begin();
      this.resize();
      this.update();
    }
  }

  begin() {
    const painter = Painter.on(this.picture);
    if (!painter) this.showMessage("This browser shows no 3D here: WebGL 2 is switched off or missing. The planes work without it.");
    this.picture.addEventListener("webglcontextlost", () => this.showMessage("The graphics card gave up the 3D view; reload the page to see it again."));
    return painter;
  }

  showMessage(text) {
    this.message.textContent = text;
    this.message.hidden = !text;
  }

  /** Drop all meshes and the camera for a new volume. */
  reset() {
    for (const mesh of this.meshes.values()) this.painter?.drop(mesh);
    this.meshes.clear();
    this.last.clear();
    this.camera = null;
    this.requestDraw();
  }

  /** After objects or masks have changed, load missing surfaces one at a time. */
  update() {
    if (!this.on || !this.painter || !this.viewer.geometry) return;
    this.requestDraw();
    const missing = this.viewer.state.objects.find((object) => object.mask && !this.meshes.has(object.mask) && !this.viewer.view.hidden.has(object.id));
    if (!missing || this.loading) return;
    this.loading = this.viewer.guard(async () => {
      const mesh = await this.viewer.api.surface(missing.id);
      this.meshes.set(mesh.key, this.painter.take(mesh));
      this.last.set(missing.id, mesh.key);
      this.trim();
      return true;
    });
    this.loading.then((done) => {
      this.loading = null;
      if (done) this.update();
    });
  }

  trim() {
    const used = new Set([...this.viewer.state.objects.map((object) => object.mask), ...this.last.values()]);
    for (const [key, mesh] of this.meshes) {
      if (this.meshes.size <= MOST_MESHES) return;
      if (used.has(key)) continue;
      this.painter.drop(mesh);
      this.meshes.delete(key);
    }
  }

  /** The mesh of each visible object; while a new one is loading, the previous one. */
  visible() {
    const { state, view } = this.viewer;
    if (view.masksHidden) return [];
    const shown = state.objects.filter((object) => object.mask && !view.hidden.has(object.id));
    return shown.map((object) => ({ mesh: this.meshes.get(object.mask) ?? this.meshes.get(this.last.get(object.id)), object })).filter(({ mesh }) => mesh);
  }

  // ---- camera ------------------------------------------------------------------------------------

  /** Corners of the volume in mm. */
  get corners() {
    const { shape } = this.viewer.geometry;
    const ends = [0, 1, 2].map((axis) => [-0.5, shape[axis] - 0.5]);
    return [0, 1, 2, 3, 4, 5, 6, 7].map((n) => this.world([ends[0][n & 1], ends[1][(n >> 1) & 1], ends[2][n >> 2]]));
  }

  world(xyz) {
    return this.viewer.geometry.toWorld(this.viewer.geometry.toFile(xyz));
  }

  fit() {
    const { corners } = this;
    const centre = [0, 1, 2].map((axis) => (corners[0][axis] + corners[7][axis]) / 2);
    const radius = Math.hypot(...[0, 1, 2].map((axis) => corners[0][axis] - centre[axis]));
    this.camera = { centre, radius, rotation: frontView(), zoom: 1, pan: [0, 0] };
  }

  /** Camera with the scale in CSS pixels per mm and the size of the pane, as the shaders need it. */
  get view() {
    if (!this.camera) this.fit();
    const { radius, zoom } = this.camera;
    return { ...this.camera, scale: (Math.min(this.width, this.height) / (1.75 * radius)) * zoom, width: this.width, height: this.height };
  }

  resize() {
    const box = this.element.getBoundingClientRect();
    this.ratio = window.devicePixelRatio || 1;
    this.width = box.width;
    this.height = box.height;
    for (const canvas of [this.picture, this.overlay]) {
      canvas.width = Math.max(1, Math.round(box.width * this.ratio));
      canvas.height = Math.max(1, Math.round(box.height * this.ratio));
    }
    this.requestDraw();
  }

  // ---- drawing -----------------------------------------------------------------------------------

  requestDraw() {
    this.dirty = true;
    this.viewer.requestDraw();
  }

  draw() {
    if (!this.dirty || !this.on || !this.viewer.image || !(this.width > 2)) return;
    this.dirty = false;
    const context = this.context;
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    if (!this.painter) return;
    const { view } = this;
    this.painter.begin(view);
    for (const { mesh, object } of this.visible()) this.painter.mesh(mesh, object.colour, object.id === this.viewer.state.selected);
    this.painter.lines(this.frame(), [0.35, 0.42, 0.52]);
    if (this.planesShown) {
      for (const plane of Object.values(this.viewer.planes)) this.painter.slice(plane, this.sliceCorners(plane));
    }
    this.painter.lines(this.crosshairLines(), [0.47, 0.8, 0.92]);
    this.drawLetters(context, view);
  }

  /** Edges of the volume: two end points in mm per edge. */
  frame() {
    const { corners } = this;
    const edges = [];
    for (let a = 0; a < 8; a++) for (const bit of [1, 2, 4]) if (!(a & bit)) edges.push(corners[a], corners[a | bit]);
    return edges;
  }

  crosshairLines() {
    const { crosshair, geometry } = this.viewer;
    const lines = [];
    for (const axis of [0, 1, 2]) {
      for (const end of [-0.5, geometry.shape[axis] - 0.5]) lines.push(this.world(crosshair.map((value, a) => (a === axis ? end : value))));
    }
    return lines;
  }

  /** Corners of a slice in mm: top left, top right, bottom left, bottom right of the picture. */
  sliceCorners(plane) {
    const { u, v, w } = PLANES[plane.plane];
    const { shape } = this.viewer.geometry;
    return [[1, 1], [0, 1], [1, 0], [0, 0]].map(([a, b]) => {
      const xyz = [0, 0, 0];
      xyz[u] = a ? shape[u] - 0.5 : -0.5;
      xyz[v] = b ? shape[v] - 0.5 : -0.5;
      xyz[w] = plane.index;
      return this.world(xyz);
    });
  }

  drawLetters(context, view) {
    context.font = FONT;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const half = [0, 1, 2].map((axis) => Math.max(...this.corners.map((corner) => Math.abs(corner[axis] - view.centre[axis]))));
    for (const [letter, direction] of LETTERS) {
      const [x, y, depth] = project(view, view.centre.map((value, axis) => value + direction[axis] * half[axis] * 1.07));
      context.globalAlpha = depth >= -1 ? 1 : 0.45;
      context.lineWidth = 3;
      context.strokeStyle = "rgba(0, 0, 0, 0.75)";
      context.strokeText(letter, x, y);
      context.fillStyle = "#ffd479";
      context.fillText(letter, x, y);
    }
    context.globalAlpha = 1;
    context.textAlign = "left";
    context.fillStyle = "rgba(214, 224, 235, 0.92)";
    context.fillText("Surfaces", 12, 16);
  }

  // ---- pointer and keys --------------------------------------------------------------------------

  listen() {
    const { overlay } = this;
    const fingers = new Map();
    let drag = null;
    const span = () => {
      const [a, b] = [...fingers.values()];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    };
    overlay.addEventListener("pointerdown", (event) => {
      if (!this.camera) return;
      event.preventDefault();
      overlay.focus({ preventScroll: true });
      overlay.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      drag = { x: event.clientX, y: event.clientY, moved: 0, pan: event.button !== 0 || event.shiftKey };
    });
    overlay.addEventListener("pointermove", (event) => {
      if (!drag || !fingers.has(event.pointerId)) return;
      const before = fingers.size === 2 ? span() : 0;
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      const dx = event.clientX - drag.x;
      const dy = event.clientY - drag.y;
      drag = { ...drag, x: event.clientX, y: event.clientY, moved: drag.moved + Math.hypot(dx, dy) };
      if (before) this.zoomBy(span() / before);
      else if (drag.pan) this.panBy(dx, dy);
      else this.turnBy(dx, dy);
    });
    const finish = (event) => {
      fingers.delete(event.pointerId);
      const clicked = event.type === "pointerup" && drag && !drag.pan && drag.moved <= CLICK_PIXELS;
      drag = null;
      if (clicked) this.pick(event);
    };
    overlay.addEventListener("pointerup", finish);
    overlay.addEventListener("pointercancel", finish);
    overlay.addEventListener("contextmenu", (event) => event.preventDefault());
    overlay.addEventListener("dblclick", () => (this.fit(), this.requestDraw()));
    overlay.addEventListener("wheel", (event) => (event.preventDefault(), this.zoomBy(Math.exp(-event.deltaY / 500))), { passive: false });
    overlay.addEventListener("keydown", (event) => {
      const act = {
        ArrowLeft: () => this.turnBy(-20, 0), ArrowRight: () => this.turnBy(20, 0), ArrowUp: () => this.turnBy(0, -20), ArrowDown: () => this.turnBy(0, 20),
        "+": () => this.zoomBy(1.2), "-": () => this.zoomBy(1 / 1.2),
      }[event.key];
      if (!act || !this.camera) return;
      event.preventDefault();
      event.stopPropagation();
      act();
    });
  }

  turnBy(dx, dy) {
    this.camera.rotation = multiply(turn(dx / 150, dy / 150), this.camera.rotation);
    this.requestDraw();
  }

  panBy(dx, dy) {
    this.camera.pan = [this.camera.pan[0] + dx, this.camera.pan[1] + dy];
    this.requestDraw();
  }

  zoomBy(factor) {
    if (!this.camera) return;
    this.camera.zoom = Math.max(0.3, Math.min(20, this.camera.zoom * factor));
    this.requestDraw();
  }

  /** Move the crosshair to the surface under the pointer. */
  pick(event) {
    const box = this.overlay.getBoundingClientRect();
    const at = [event.clientX - box.left, event.clientY - box.top];
    const point = hitPoint(this.view, at, this.visible().map(({ mesh }) => mesh));
    if (!point) return;
    const { geometry } = this.viewer;
    this.viewer.setCrosshair(geometry.nearest(geometry.toRas(geometry.fromWorld(point))));
  }
}
