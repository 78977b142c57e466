/** Drag handlers (see pointer.js) for brush strokes, scribbles, lassos, and moving points. */

export const FIRST_RADIUS = 4;
/** A press that moves fewer pixels than this does not move a point. */
const CLICK_PIXELS = 4;
/** Maximum number of corners in one line; the server refuses more. */
const MOST_CORNERS = 1900;

/** A line that follows the pointer on one slice. */
function line(plane, x, y, kind, positive) {
  const { edit } = plane.viewer;
  const stroke = { plane, index: plane.index, kind, positive, radius: edit.radius, points: [plane.toVoxel(x, y)] };
  edit.strokes.push(stroke);
  plane.invalidate(false);
  let [lastX, lastY] = [x, y];
  const step = kind === "brush" ? Math.max(1.5, (stroke.radius * plane.transform.scale) / 5) : 2;
  return {
    stroke,
    follow(px, py) {
      if (Math.hypot(px - lastX, py - lastY) < step || stroke.points.length >= MOST_CORNERS) return;
      [lastX, lastY] = [px, py];
      const xyz = plane.toVoxel(px, py);
      xyz[plane.axes.w] = stroke.index; // also if the slice was changed during the drag
      stroke.points.push(xyz);
      plane.invalidate(false);
    },
  };
}

export function strokeDrag(plane, x, y, kind, positive) {
  const { edit, geometry } = plane.viewer;
  const { stroke, follow } = line(plane, x, y, kind, positive);
  return {
    move: follow,
    end(px, py) {
      follow(px, py);
      if (kind === "scribble") stroke.points = stroke.points.filter((xyz) => geometry.contains(xyz));
      edit.commit(stroke);
    },
    cancel: () => edit.drop(stroke),
  };
}

export function lassoDrag(plane, x, y, positive) {
  const { edit } = plane.viewer;
  const { stroke, follow } = line(plane, x, y, "lasso", positive);
  return {
    move: follow,
    end() {
      if (stroke.points.length < 3) edit.drop(stroke);
      else edit.commit(stroke);
    },
    cancel: () => edit.drop(stroke),
  };
}

/** Move a point of the selected object on this slice. */
export function pointDrag(plane, x, y, index) {
  const { viewer } = plane;
  const { edit } = viewer;
  let moved = false;
  return {
    move(px, py) {
      moved ||= Math.hypot(px - x, py - y) >= CLICK_PIXELS;
      if (!moved) return;
      edit.moving = { index, xyz: viewer.geometry.nearest(plane.toVoxel(px, py)) };
      viewer.redrawOverlays();
    },
    end(px, py) {
      if (moved) edit.movePoint(index, plane.toVoxel(px, py));
    },
    cancel() {
      edit.moving = null;
      viewer.redrawOverlays();
    },
  };
}
