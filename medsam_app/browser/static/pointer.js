/**
 * Pointer input on a plane.
 *
 * Left button: depends on the mode. Right: window and level. Middle, or left with the space bar held:
 * pan. Wheel: scroll; with Ctrl (or a pinch): zoom. Two fingers: pan and zoom.
 */

import { boxOnScreen } from "./overlay.js";

/** A press that moves fewer pixels than this is a click. */
const CLICK_PIXELS = 4;
const GRAB_PIXELS = 7;
const WHEEL_PIXELS = 60;

/** @param {import("./plane.js").PlaneView} plane */
export function listen(plane) {
  const { overlay, viewer, rail } = plane;
  let drag = null;
  let wheel = 0;
  const fingers = new Map();

  const position = (event) => {
    const box = overlay.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  overlay.addEventListener("pointerdown", (event) => {
    if (!viewer.image) return;
    event.preventDefault();
    overlay.focus({ preventScroll: true });
    overlay.setPointerCapture(event.pointerId);
    const [x, y] = position(event);
    if (event.button === 0 && viewer.mode !== "navigate" && !viewer.spaceHeld && viewer.cine.onOtherFrame) return viewer.cine.refuse();
    if (event.pointerType === "touch") {
      fingers.set(event.pointerId, [x, y]);
      if (fingers.size === 2) {
        drag?.cancel?.();
        drag = pinch(plane, fingers);
        return;
      }
    }
    if (event.button === 2) drag = windowDrag(plane, x, y);
    else if (event.button === 1 || viewer.spaceHeld) drag = panDrag(plane, x, y);
    else if (event.button === 0) drag = viewer.edit.begin(plane, x, y, event.shiftKey) ?? leftDrag(plane, x, y, event.shiftKey);
    overlay.classList.toggle("dragging", Boolean(drag));
  });

  overlay.addEventListener("pointermove", (event) => {
    if (!viewer.image) return;
    const [x, y] = position(event);
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, [x, y]);
    viewer.hover(plane, x, y);
    if (drag) drag.move(x, y);
    else if (viewer.mode === "box") overlay.style.cursor = grab(plane, x, y)?.cursor ?? "crosshair";
    else overlay.style.cursor = "";
  });

  const finish = (event) => {
    fingers.delete(event.pointerId);
    const done = drag;
    drag = null;
    overlay.classList.remove("dragging");
    if (done && event.type === "pointerup") done.end?.(...position(event));
    else done?.cancel?.();
  };
  overlay.addEventListener("pointerup", finish);
  overlay.addEventListener("pointercancel", finish);
  overlay.addEventListener("pointerleave", () => drag || viewer.hover(null));
  overlay.addEventListener("contextmenu", (event) => event.preventDefault());
  overlay.addEventListener("dblclick", () => viewer.mode === "navigate" && viewer.toggleMaximised(plane.plane));

  overlay.addEventListener(
    "wheel",
    (event) => {
      if (!viewer.image) return;
      event.preventDefault();
      const [x, y] = position(event);
      const lines = event.deltaMode === 1 ? event.deltaY * 20 : event.deltaY;
      if (event.ctrlKey) {
        plane.zoomAt(Math.exp(-lines / 300), x, y);
        return;
      }
      wheel += lines;
      const steps = Math.abs(lines) >= WHEEL_PIXELS ? Math.sign(lines) : Math.trunc(wheel / WHEEL_PIXELS);
      if (!steps) return;
      wheel = 0;
      viewer.scroll(plane.plane, -steps);
      viewer.hover(plane, x, y);
    },
    { passive: false },
  );

  rail.addEventListener("pointerdown", (event) => {
    if (!viewer.image) return;
    event.preventDefault();
    rail.setPointerCapture(event.pointerId);
    const follow = (move) => {
      const box = rail.getBoundingClientRect();
      const fraction = 1 - (move.clientY - box.top) / box.height;
      viewer.setSlice(plane.plane, Math.round(fraction * (plane.sliceCount - 1)));
    };
    follow(event);
    rail.addEventListener("pointermove", follow);
    const release = () => rail.removeEventListener("pointermove", follow);
    rail.addEventListener("pointerup", release, { once: true });
    rail.addEventListener("pointercancel", release, { once: true });
  });
}

function leftDrag(plane, x, y, shift) {
  const { mode } = plane.viewer;
  if (mode === "box") return boxDrag(plane, x, y);
  if (mode === "navigate") return crosshairDrag(plane, x, y);
  return pointClick(plane, x, y, shift);
}

function crosshairDrag(plane, x, y) {
  const move = (px, py) => {
    const xyz = plane.toVoxel(px, py);
    plane.viewer.setCrosshair(plane.viewer.geometry.nearest(xyz));
  };
  move(x, y);
  return { move };
}

function panDrag(plane, x, y) {
  const [panX, panY] = plane.pan;
  return {
    move(px, py) {
      plane.pan = [panX + px - x, panY + py - y];
      plane.invalidate();
    },
  };
}

/** Change the window: right widens it, down raises its centre. 400 pixels are the larger of the initial and the current width. */
function windowDrag(plane, x, y) {
  const { viewer } = plane;
  const { low, high } = viewer.image;
  const centre = (low + high) / 2;
  const width = high - low;
  const unit = Math.max(width, viewer.volume.window[1] - viewer.volume.window[0]) / 400;
  return {
    move(px, py) {
      const newWidth = Math.max(viewer.image.integer ? 1 : unit / 100, width + (px - x) * unit);
      viewer.setWindow(centre + (py - y) * unit, newWidth);
    },
  };
}

function pointClick(plane, x, y, opposite) {
  let moved = false;
  return {
    move(px, py) {
      moved ||= Math.hypot(px - x, py - y) > CLICK_PIXELS * 2;
    },
    end() {
      if (moved) return;
      const positive = (plane.viewer.mode === "positive") !== opposite;
      plane.viewer.clickPoint(plane.toVoxel(x, y), positive);
    },
  };
}

function pinch(plane, fingers) {
  const state = () => {
    const [[x0, y0], [x1, y1]] = fingers.values();
    return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, span: Math.max(20, Math.hypot(x1 - x0, y1 - y0)) };
  };
  let last = state();
  return {
    move() {
      if (fingers.size !== 2) return;
      const now = state();
      plane.pan = [plane.pan[0] + now.x - last.x, plane.pan[1] + now.y - last.y];
      plane.zoomAt(now.span / last.span, now.x, now.y);
      last = now;
    },
  };
}

/** The side or corner of a box of the selected object under the pointer, or null. */
function grab(plane, x, y) {
  for (const { box, index, draft } of plane.viewer.visibleBoxes()) {
    const frame = !draft && boxOnScreen(plane, box);
    if (!frame) continue;
    const { x0, y0, x1, y1 } = frame;
    if (x < x0 - GRAB_PIXELS || x > x1 + GRAB_PIXELS || y < y0 - GRAB_PIXELS || y > y1 + GRAB_PIXELS) continue;
    const near = (value, target) => Math.abs(value - target) <= GRAB_PIXELS;
    const sides = { left: near(x, x0), right: near(x, x1), top: near(y, y0), bottom: near(y, y1) };
    const horizontal = sides.left || sides.right;
    const vertical = sides.top || sides.bottom;
    if (!horizontal && !vertical) continue;
    const cursor = horizontal && vertical ? "move" : horizontal ? "ew-resize" : "ns-resize";
    return { box, index, sides, cursor };
  }
  return null;
}

/** Resize the box under the pointer, or draw a new one on this slice. */
function boxDrag(plane, x, y) {
  const grip = grab(plane, x, y);
  return grip ? boxResize(plane, grip, x, y) : boxDraw(plane, x, y);
}

function boxDraw(plane, x, y) {
  const { viewer } = plane;
  const start = plane.toVoxel(x, y);
  if (!viewer.geometry.contains(start)) {
    return { move() {}, end: () => viewer.outside() };
  }
  const from = viewer.geometry.nearest(start);
  let box = null;
  return {
    move(px, py) {
      if (!box && Math.hypot(px - x, py - y) < CLICK_PIXELS) return;
      box = { lower: from, upper: viewer.geometry.nearest(plane.toVoxel(px, py)) };
      viewer.setDraft(box, -1);
    },
    end() {
      viewer.setDraft(null, -1);
      if (box) viewer.commitBox(box, -1);
    },
    cancel: () => viewer.setDraft(null, -1),
  };
}

function boxResize(plane, { box, index, sides }, x, y) {
  const { viewer, axes } = plane;
  let edited = null;
  // Axes are reversed: the left and top sides belong to the upper corner. If both sides of a thin box are under
  // the pointer, the direction of the first movement selects one.
  const pull = (axis, towardsUpper, towardsLower, moved, value) => {
    if (!towardsUpper && !towardsLower) return;
    const upper = towardsUpper && towardsLower ? moved < 0 : towardsUpper;
    const side = upper ? "upper" : "lower";
    edited[side][axis] = value;
    if (edited.lower[axis] > edited.upper[axis]) edited[side][axis] = edited[upper ? "lower" : "upper"][axis];
  };
  return {
    move(px, py) {
      const at = viewer.geometry.nearest(plane.toVoxel(px, py));
      edited = { lower: [...box.lower], upper: [...box.upper] };
      pull(axes.u, sides.left, sides.right, px - x, at[axes.u]);
      pull(axes.v, sides.top, sides.bottom, py - y, at[axes.v]);
      viewer.setDraft(edited, index);
    },
    end() {
      viewer.setDraft(null, -1);
      const same = edited && [0, 1, 2].every((a) => edited.lower[a] === box.lower[a] && edited.upper[a] === box.upper[a]);
      if (edited && !same) viewer.commitBox(edited, index);
    },
    cancel: () => viewer.setDraft(null, -1),
  };
}
