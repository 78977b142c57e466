/**
 * Display state of the viewer: volume, crosshair, window, visible objects and prompts.
 *
 * Nothing in this module sends a request to the server.
 */

import { Progress, Toasts, openHelp } from "./dialogs.js";
import { h } from "./dom.js";
import { PLANES } from "./geometry.js";
import { Edit } from "./edit.js";
import { Heat } from "./heat.js";
import { CT_PRESETS } from "./image.js";
import { Keyboard } from "./keyboard.js";
import { listenToKeys } from "./keys.js";
import { MaskCache } from "./masks.js";
import { PlaneView } from "./plane.js";
import { Projection } from "./projection.js";
import { listen } from "./pointer.js";
import { Cine } from "./cine.js";
import { Sidebar } from "./sidebar.js";
import { StatusLine } from "./status.js";
import { SurfaceView } from "./surface.js";
import { Toolbar } from "./toolbar.js";
import { Voice } from "./voice.js";

const OPACITIES = [0, 0.25, 0.45, 0.7];
const EMPTY = { objects: [], selected: null, can_undo: false, can_redo: false, refine: false };

export class Scene {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.masks = new MaskCache();
    this.state = EMPTY;
    this.volume = null;
    this.image = null;
    this.geometry = null;
    this.mode = "positive";
    this.crosshair = [0, 0, 0];
    this.view = { opacity: 0.45, outline: true, masksHidden: false, crosshair: true, hidden: new Set() };
    this.draft = null;
    this.pending = [];
    this.hotPrompt = null;
    this.pointer = null;
    this.active = "axial";
    this.maximised = null;
    this.spaceHeld = false;

    /** Additional layers of the planes, with a method drawOver(context, plane), drawUnder, or both. */
    this.overlays = [];
    this.heat = new Heat(this);
    this.projection = new Projection(this);
    this.surface = new SurfaceView(this);
    this.cine = new Cine(this);
    this.edit = new Edit(this);
    this.toasts = new Toasts();
    this.progress = new Progress();
    this.toolbar = new Toolbar(this);
    this.sidebar = new Sidebar(this);
    this.status = new StatusLine(this);
    this.voice = new Voice(this);
    this.keyboard = new Keyboard(this);
    this.planes = Object.fromEntries(Object.keys(PLANES).map((plane) => [plane, new PlaneView(plane, this)]));
    const stage = h("div.stage", {}, ...Object.values(this.planes).map((plane) => plane.element), this.surface.element);
    this.stage = h("main.stage-frame", {}, stage, this.cine.element, this.progress.element, this.toasts.element);
    root.replaceChildren(this.toolbar.element, this.stage, this.sidebar.element, this.status.element, this.voice.element);

    const resize = new ResizeObserver(() => [...Object.values(this.planes), this.surface].forEach((pane) => pane.resize()));
    resize.observe(this.surface.element);
    for (const plane of Object.values(this.planes)) {
      listen(plane);
      this.keyboard.attach(plane);
      resize.observe(plane.element);
    }
    listenToKeys(this);
    this.setMode("positive");
  }

  // ---- drawing -----------------------------------------------------------------------------------

  requestDraw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.drawNow();
    });
  }

  /** Draw all pending changes now, not in the next animation frame. */
  drawNow() {
    for (const plane of Object.values(this.planes)) plane.draw();
    this.surface.draw();
  }

  redraw() {
    for (const plane of Object.values(this.planes)) plane.invalidate();
    this.surface.requestDraw();
  }

  /** Whether the picture is covered by a colouring other than the objects' masks. */
  get recoloured() {
    return this.heat.shown || this.sidebar.compare.showing;
  }

  visibleMasks() {
    const shown = [];
    for (const object of this.state.objects) {
      const mask = object.mask && !this.view.hidden.has(object.id) && this.masks.get(object.mask);
      if (mask) shown.push({ mask, colour: object.colour, selected: object.id === this.state.selected, object });
    }
    return shown;
  }

  get selected() {
    return this.state.objects.find((object) => object.id === this.state.selected) ?? null;
  }

  visiblePoints() {
    const points = [];
    this.selected?.prompts.forEach((prompt, index) => {
      if (prompt.kind !== "point") return;
      const xyz = this.edit.moving?.index === index ? this.edit.moving.xyz : this.geometry.toRas(prompt.coordinates);
      points.push({ xyz, positive: prompt.positive, unmet: prompt.unmet, hot: this.hotPrompt === index, index });
    });
    return [...points, ...this.pending];
  }

  visibleBoxes() {
    const boxes = [];
    this.selected?.prompts.forEach((prompt, index) => {
      if (prompt.kind !== "box" || this.draft?.index === index) return;
      const box = { lower: this.geometry.toRas(prompt.lower), upper: this.geometry.toRas(prompt.upper) };
      for (const axis of [0, 1, 2]) {
        const pair = [box.lower[axis], box.upper[axis]].sort((a, b) => a - b);
        [box.lower[axis], box.upper[axis]] = pair;
      }
      boxes.push({ box, index, hot: this.hotPrompt === index });
    });
    if (this.draft) boxes.push({ box: this.draft.box, index: this.draft.index, draft: true });
    return boxes;
  }

  // ---- view --------------------------------------------------------------------------------------

  setCrosshair(xyz) {
    const before = this.crosshair;
    this.crosshair = xyz;
    for (const plane of Object.values(this.planes)) plane.invalidate(before[plane.axes.w] !== xyz[plane.axes.w]);
    this.sidebar.edit.updateSlice();
    this.status.update();
    this.surface.requestDraw();
    this.sidebar.measure.follow();
  }

  setSlice(plane, index) {
    if (!this.image) return;
    const { w } = PLANES[plane];
    const xyz = [...this.crosshair];
    xyz[w] = Math.max(0, Math.min(this.geometry.shape[w] - 1, index));
    if (xyz[w] !== this.crosshair[w]) this.setCrosshair(xyz);
  }

  scroll(plane, steps) {
    if (this.image) this.setSlice(plane, this.crosshair[PLANES[plane].w] + steps);
  }

  scrollActive(steps) {
    this.scroll(this.active, steps);
  }

  /** Update after the pointer moved over a plane, or left it (`plane` null). */
  hover(plane, x, y) {
    this.pointer = plane ? { plane, x, y } : null;
    if (plane) this.active = plane.plane;
    const hot = plane && this.image ? this.promptAt(plane, x, y) : null;
    if (hot !== this.hotPrompt) this.setHotPrompt(hot);
    this.edit.hovered();
    this.status.update();
  }

  promptAt(plane, x, y) {
    for (const { xyz, index } of this.visiblePoints()) {
      if (index === undefined || Math.abs(Math.round(xyz[plane.axes.w]) - plane.index) > 0) continue;
      const [px, py] = plane.toScreen(xyz);
      if (Math.hypot(px - x, py - y) < 9) return index;
    }
    return null;
  }

  setHotPrompt(index) {
    this.hotPrompt = index;
    this.sidebar.prompts.mark(index);
    for (const plane of Object.values(this.planes)) plane.invalidate(false);
  }

  /** RAS indices of the voxel under the pointer, or null. */
  get voxelAtPointer() {
    if (!this.pointer || !this.image) return null;
    const xyz = this.pointer.plane.toVoxel(this.pointer.x, this.pointer.y);
    return this.geometry.contains(xyz) ? this.geometry.nearest(xyz) : null;
  }

  setWindow(centre, width) {
    if (!this.image) return;
    this.image.setWindow(centre - width / 2, centre + width / 2);
    this.toolbar.updateWindow();
    this.redraw();
  }

  get presets() {
    if (!this.volume) return [];
    const [low, high] = this.volume.window;
    const [minimum, maximum] = this.volume.range;
    const volumePresets = [["Auto", (low + high) / 2, high - low], ["Full range", (minimum + maximum) / 2, maximum - minimum]];
    return this.volume.ct ? [...CT_PRESETS, ...volumePresets] : volumePresets;
  }

  applyPreset(index) {
    const [, centre, width] = this.presets[index];
    this.preset = index;
    this.setWindow(centre, width);
  }

  nextPreset() {
    if (this.image) this.applyPreset(((this.preset ?? -1) + 1) % this.presets.length);
  }

  fit() {
    for (const plane of Object.values(this.planes)) plane.fit();
  }

  toggleMaximised(plane = this.active) {
    this.maximised = this.maximised ? null : plane;
    this.stage.firstChild.dataset.maximised = this.maximised ?? "";
  }

  toggle(what) {
    this.view[what] = !this.view[what];
    this.toolbar.updateView();
    this.redraw();
  }

  setOpacity(value) {
    this.view.opacity = value;
    this.toolbar.updateView();
    this.redraw();
  }

  cycleOpacity() {
    this.setOpacity(OPACITIES.find((value) => value > this.view.opacity + 0.001) ?? OPACITIES[0]);
  }

  toggleObject(id) {
    if (!this.view.hidden.delete(id)) this.view.hidden.add(id);
    this.surface.update();
    this.sidebar.update();
    this.redraw();
  }

  setMode(mode) {
    this.mode = mode;
    this.root.dataset.mode = mode;
    this.toolbar.updateMode();
    this.redrawOverlays();
  }

  redrawOverlays() {
    for (const plane of Object.values(this.planes)) plane.invalidate(false);
  }

  setSpaceHeld(isHeld) {
    this.spaceHeld = isHeld;
    this.root.classList.toggle("panning", isHeld);
  }

  setDraft(box, index) {
    this.draft = box && { box, index };
    this.redrawOverlays();
  }

  /** Leave the enlarged plane. @returns {boolean} whether one was enlarged */
  escape() {
    if (document.querySelector("dialog[open]")) return false;
    if (!this.maximised) return false;
    this.toggleMaximised();
    return true;
  }

  toggleHelp() {
    const open = document.querySelector("dialog[open]");
    if (open) open.close();
    else openHelp(this.root);
  }

  outside() {
    this.toasts.show("That is outside the image; click inside it.", "warning");
  }

  centreOnObject() {
    const mask = this.selected?.mask && this.masks.get(this.selected.mask);
    if (mask) this.setCrosshair(this.geometry.nearest(mask.start.map((start, a) => start + (mask.size[a] - 1) / 2)));
  }

  /** Show the slice of a prompt. */
  goToPrompt(prompt) {
    const line = prompt.kind === "scribble" ? prompt.coordinates[prompt.coordinates.length >> 1] : prompt.coordinates;
    const ijk = line ?? prompt.lower?.map((low, a) => (low + prompt.upper[a]) / 2);
    if (ijk) this.setCrosshair(this.geometry.nearest(this.geometry.toRas(ijk)));
  }

  // ---- for scripts and tests ---------------------------------------------------------------------

  /** Position on the page (CSS pixels) of voxel indices (i, j, k) of the file, in a plane. */
  voxelToScreen(plane, ijk) {
    const [x, y] = this.planes[plane].toScreen(this.geometry.toRas(ijk));
    const box = this.planes[plane].overlay.getBoundingClientRect();
    return [box.left + x, box.top + y];
  }

  /** Move the crosshair to voxel indices (i, j, k) of the file. */
  goTo(ijk) {
    this.setCrosshair(this.geometry.nearest(this.geometry.toRas(ijk)));
  }
}
