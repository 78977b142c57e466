/**
 * Manual editing of masks: requests to the server, and strokes on the planes.
 *
 * A stroke is shown while it is drawn; the changed mask arrives with the server's response.
 */

import { NEGATIVE, POSITIVE, drawBadge } from "./overlay.js";
import { FIRST_RADIUS, lassoDrag, pointDrag, strokeDrag } from "./strokes.js";

const RADII = [0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40];
const ERASED = "#05070a";
/** Modes handled by this module; in each of them Shift draws the opposite. */
const MODES = new Set(["brush", "eraser", "scribble", "lasso"]);

export class Edit {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.radius = FIRST_RADIUS;
    this.ball = false; // whether the brush is a ball in 3D or a disc on the slice
    this.strokes = []; // being drawn, or sent and not yet answered
    this.moving = null; // the point being dragged: { index, xyz }
  }

  // ---- pointer -----------------------------------------------------------------------------------

  /** Start a drag for a press of the left button; null if the mode is not handled here. */
  begin(plane, x, y, shift) {
    const { viewer } = this;
    if (MODES.has(viewer.mode)) {
      if (!viewer.geometry.contains(plane.toVoxel(x, y))) return { move() {}, end: () => viewer.outside() };
      if (viewer.mode === "lasso") return lassoDrag(plane, x, y, !shift);
      const kind = viewer.mode === "scribble" ? "scribble" : "brush";
      return strokeDrag(plane, x, y, kind, (viewer.mode !== "eraser") !== shift);
    }
    const index = ["positive", "negative", "navigate"].includes(viewer.mode) ? viewer.promptAt(plane, x, y) : null;
    return index === null ? null : pointDrag(plane, x, y, index);
  }

  /** Update after the pointer moved: the brush's circle follows it, and a lock applies to the plane under it. */
  hovered() {
    this.viewer.sidebar.edit.updateSlice();
    if (this.viewer.mode === "brush" || this.viewer.mode === "eraser") this.viewer.redrawOverlays();
  }

  setRadius(mm) {
    this.radius = Math.max(RADII[0], Math.min(RADII[RADII.length - 1], mm));
    this.viewer.redrawOverlays();
    this.viewer.sidebar.tabs.update();
  }

  /** Set the brush to the next larger (1) or smaller (-1) size. */
  stepRadius(step) {
    const next = step > 0 ? RADII.find((mm) => mm > this.radius + 0.01) : RADII.findLast((mm) => mm < this.radius - 0.01);
    if (next) this.setRadius(next);
  }

  setBall(ball) {
    this.ball = ball;
    this.viewer.sidebar.tabs.update();
  }

  // ---- requests to the server --------------------------------------------------------------------

  /** Send a finished stroke; it stays visible until the server responds. */
  commit(stroke) {
    const { viewer } = this;
    const points = stroke.points.map((xyz) => viewer.geometry.toFile(xyz));
    const { positive } = stroke;
    const axis = this.axisOf(stroke.plane);
    const action = {
      brush: { do: "paint", points, positive, radius: stroke.radius, axis: this.ball ? null : axis },
      lasso: { do: "lasso", points, positive, axis },
      scribble: { do: "add_prompt", prompt: { kind: "scribble", coordinates: points, positive } },
    }[stroke.kind];
    return viewer.act(action, stroke.kind === "scribble" ? "Segmenting" : "Painting").finally(() => this.drop(stroke));
  }

  drop(stroke) {
    this.strokes = this.strokes.filter((item) => item !== stroke);
    this.viewer.redrawOverlays();
  }

  movePoint(index, xyz) {
    const { viewer } = this;
    const object = viewer.state.selected;
    const { positive } = viewer.selected.prompts[index];
    const prompt = { kind: "point", coordinates: viewer.geometry.toFile(viewer.geometry.nearest(xyz)), positive };
    return viewer.act({ do: "replace_prompt", object, index, prompt }, "Segmenting").finally(() => {
      this.moving = null;
      viewer.redrawOverlays();
    });
  }

  /** Apply a tool to the selected object: to its whole mask, or to the slice shown in the last used plane. */
  tool(tool, mm, onSlice) {
    const place = onSlice || tool === "interpolate" ? this.slice() : {};
    if (tool === "interpolate") delete place.index;
    return this.ask((object) => ({ do: "tool", object, tool, mm, ...place }), "Changing the mask");
  }

  combine(other, how) {
    return this.ask((object) => ({ do: "combine", object, other, how }), "Changing the mask");
  }

  lock(place, locked) {
    return this.ask((object) => ({ do: "lock", object, ...place, locked }), "Locking");
  }

  toggleLock() {
    return this.lock(this.slice(), !this.isLocked(this.slice()));
  }

  goBack(step) {
    return this.ask((object) => ({ do: "go_back", object, step }), "Going back");
  }

  ask(action, what) {
    const { viewer } = this;
    if (!viewer.selected) return viewer.toasts.show("Choose an object first.", "warning");
    return viewer.act(() => action(viewer.state.selected), what);
  }

  // ---- slices ------------------------------------------------------------------------------------

  axisOf(plane) {
    return this.viewer.geometry.axes[plane.axes.w];
  }

  /** Axis and index, in the file's order, of the slice shown in a plane. */
  slice(plane = this.viewer.planes[this.viewer.active]) {
    const axis = this.axisOf(plane);
    return { axis, index: this.viewer.geometry.toFile(this.viewer.crosshair)[axis] };
  }

  isLocked({ axis, index }) {
    return this.viewer.selected?.locks.some((lock) => lock.axis === axis && lock.index === index) ?? false;
  }

  /** Name of a slice, counted from 1: "axial 13". */
  words({ axis, index }) {
    const { geometry } = this.viewer;
    const ras = geometry.axes.indexOf(axis);
    const shown = geometry.flips[ras] ? geometry.shape[ras] - index : index + 1;
    return `${["sagittal", "coronal", "axial"][ras]} ${shown}`;
  }

  goToSlice({ axis, index }) {
    const ijk = this.viewer.geometry.toFile(this.viewer.crosshair);
    ijk[axis] = index;
    this.viewer.goTo(ijk);
  }

  // ---- drawing -----------------------------------------------------------------------------------

  /** @param {CanvasRenderingContext2D} context @param {import("./plane.js").PlaneView} plane */
  draw(context, plane) {
    const { viewer } = this;
    viewer.selected?.prompts.forEach((prompt, index) => {
      if (prompt.kind === "scribble") this.drawScribble(context, plane, prompt, viewer.hotPrompt === index);
    });
    for (const stroke of this.strokes) {
      if (stroke.plane === plane && stroke.index === plane.index) this.drawStroke(context, plane, stroke);
    }
    if (this.isLocked(this.slice(plane))) drawBadge(context, "Locked", viewer.projection.on ? 1 : 0, true);
    this.drawBrush(context, plane);
  }

  drawStroke(context, plane, { kind, points, radius, positive }) {
    const path = pathOf(plane, points);
    context.save();
    context.lineJoin = context.lineCap = "round";
    if (kind === "brush") {
      context.globalAlpha = positive ? Math.max(0.35, this.viewer.view.opacity) : 0.6;
      context.strokeStyle = positive ? (this.viewer.selected?.colour ?? POSITIVE) : ERASED;
      context.lineWidth = Math.max(1, 2 * radius * plane.transform.scale);
      context.stroke(path);
    } else {
      context.strokeStyle = context.fillStyle = positive ? POSITIVE : NEGATIVE;
      if (kind === "lasso") {
        context.globalAlpha = 0.2;
        context.fill(path);
        context.globalAlpha = 1;
        context.setLineDash([5, 4]);
      }
      context.lineWidth = kind === "lasso" ? 1.5 : 3;
      context.stroke(path);
    }
    context.restore();
  }

  drawScribble(context, plane, { coordinates, positive, unmet }, hot) {
    const { w } = plane.axes;
    const corners = coordinates.map((ijk) => this.viewer.geometry.toRas(ijk));
    const near = corners.filter((xyz) => Math.abs(xyz[w] - plane.index) <= 0.5);
    if (!near.length) return;
    context.save();
    context.lineJoin = context.lineCap = "round";
    for (const [colour, width] of [["rgba(0, 0, 0, 0.6)", 5], [positive ? POSITIVE : NEGATIVE, hot ? 4 : 2.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      if (unmet && width < 5) context.setLineDash([6, 5]);
      context.stroke(pathOf(plane, near));
    }
    context.restore();
  }

  /** Draw a circle of the brush's size at the pointer. */
  drawBrush(context, plane) {
    const { mode, pointer } = this.viewer;
    if (pointer?.plane !== plane || (mode !== "brush" && mode !== "eraser")) return;
    context.save();
    for (const [colour, width] of [["rgba(0, 0, 0, 0.7)", 3], [mode === "eraser" ? NEGATIVE : "#fff", 1.25]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.arc(pointer.x, pointer.y, Math.max(1.5, this.radius * plane.transform.scale), 0, 2 * Math.PI);
      context.stroke();
    }
    context.restore();
  }
}

/** Path through RAS voxels on a plane; a single point becomes a dot. */
function pathOf(plane, points) {
  const path = new Path2D();
  points.forEach((xyz, index) => {
    const [x, y] = plane.toScreen(xyz);
    if (index) path.lineTo(x, y);
    else path.moveTo(x, y);
  });
  if (points.length === 1) path.lineTo(...plane.toScreen(points[0]).map((value) => value + 0.01));
  return path;
}
