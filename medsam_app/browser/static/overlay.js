/** Drawing on top of the picture: crosshair, prompts, orientation marks and scale bar. */

/** Blue and orange of a colour-blind safe palette; + and - mark the sign without colour. */
export const POSITIVE = "#4aa8ff";
export const NEGATIVE = "#ff9a3c";

const CROSSHAIR = "rgba(120, 205, 235, 0.42)";
const LABEL = "rgba(214, 224, 235, 0.92)";
const MUTED = "rgba(160, 174, 190, 0.8)";
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';

/** @param {CanvasRenderingContext2D} context @param {import("./plane.js").PlaneView} plane */
export function drawCrosshair(context, plane) {
  const [x, y] = plane.toScreen(plane.viewer.crosshair);
  const gap = 9;
  context.strokeStyle = CROSSHAIR;
  context.lineWidth = 1;
  context.beginPath();
  for (const [x1, y1, x2, y2] of [
    [0, y, x - gap, y],
    [x + gap, y, plane.width, y],
    [x, 0, x, y - gap],
    [x, y + gap, x, plane.height],
  ]) {
    context.moveTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
    context.lineTo(Math.round(x2) + 0.5, Math.round(y2) + 0.5);
  }
  context.stroke();
}

/** Corners on the screen of a box in RAS voxel indices; null if the slice does not meet it. */
export function boxOnScreen(plane, box) {
  const { w } = plane.axes;
  if (plane.index < Math.min(box.lower[w], box.upper[w]) - 0.5) return null;
  if (plane.index > Math.max(box.lower[w], box.upper[w]) + 0.5) return null;
  const low = [0, 1, 2].map((axis) => Math.min(box.lower[axis], box.upper[axis]) - 0.5);
  const high = [0, 1, 2].map((axis) => Math.max(box.lower[axis], box.upper[axis]) + 0.5);
  const [x1, y1] = plane.toScreen(low);
  const [x0, y0] = plane.toScreen(high);
  return { x0, y0, x1, y1 };
}

/** Draw the boxes of the selected object and the draft, with handles for resizing. */
export function drawBoxes(context, plane) {
  const { viewer } = plane;
  const editable = viewer.mode === "box";
  for (const { box, draft, hot } of viewer.visibleBoxes()) {
    const frame = boxOnScreen(plane, box);
    if (!frame) continue;
    const { x0, y0, x1, y1 } = frame;
    context.lineWidth = 3;
    context.strokeStyle = "rgba(0, 0, 0, 0.55)";
    context.setLineDash([]);
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    context.lineWidth = hot ? 2 : 1.5;
    context.strokeStyle = POSITIVE;
    if (draft) context.setLineDash([6, 4]);
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    context.setLineDash([]);
    if (!editable) continue;
    context.fillStyle = "#fff";
    const middleX = (x0 + x1) / 2;
    const middleY = (y0 + y1) / 2;
    for (const [x, y] of [[middleX, y0], [middleX, y1], [x0, middleY], [x1, middleY]]) {
      context.fillRect(x - 3, y - 3, 6, 6);
      context.lineWidth = 1;
      context.strokeStyle = "#10324d";
      context.strokeRect(x - 3, y - 3, 6, 6);
    }
  }
}

/** Draw points on this slice as filled circles with + or -, points one or two slices away as faint rings. */
export function drawPoints(context, plane) {
  for (const { xyz, positive, unmet, hot, pending } of plane.viewer.visiblePoints()) {
    const distance = Math.abs(Math.round(xyz[plane.axes.w]) - plane.index);
    if (distance > 2) continue;
    const [x, y] = plane.toScreen(xyz);
    const colour = positive ? POSITIVE : NEGATIVE;
    const radius = hot ? 9 : 7;
    context.globalAlpha = distance ? 0.55 : 1;
    context.beginPath();
    context.arc(x, y, distance ? radius - 2 : radius, 0, 2 * Math.PI);
    if (!distance) {
      context.fillStyle = colour;
      context.fill();
    }
    context.lineWidth = distance ? 1.5 : 2;
    context.strokeStyle = distance ? colour : pending ? "#9fb4c8" : "#fff";
    context.stroke();
    context.strokeStyle = distance ? colour : "#06121c";
    context.lineWidth = 2;
    context.beginPath();
    const arm = distance ? 2.5 : 3.5;
    context.moveTo(x - arm, y);
    context.lineTo(x + arm, y);
    if (positive) {
      context.moveTo(x, y - arm);
      context.lineTo(x, y + arm);
    }
    context.stroke();
    if (unmet && !distance) {
      context.setLineDash([3, 3]);
      context.strokeStyle = "#ffd166";
      context.beginPath();
      context.arc(x, y, radius + 4, 0, 2 * Math.PI);
      context.stroke();
      context.setLineDash([]);
    }
    context.globalAlpha = 1;
  }
}

/** Draw a badge with a note about a plane below its name, in row 0, 1, ..., optionally with a padlock. */
export function drawBadge(context, text, row = 0, padlock = false) {
  context.save();
  context.font = `600 12px ${FONT}`;
  context.textAlign = "left";
  context.textBaseline = "middle";
  const y = 37 + 24 * row;
  const indent = padlock ? 15 : 0;
  context.fillStyle = "rgba(5, 7, 10, 0.78)";
  context.strokeStyle = "rgba(255, 212, 121, 0.6)";
  context.beginPath();
  context.roundRect(10.5, y - 10, context.measureText(text).width + indent + 16, 20, 5);
  context.fill();
  context.stroke();
  context.fillStyle = context.strokeStyle = "#ffd479";
  context.fillText(text, 18 + indent, y + 0.5);
  if (padlock) {
    context.lineWidth = 1.6;
    context.beginPath();
    context.roundRect(18, y - 1, 10, 7, 1.5);
    context.fill();
    context.beginPath();
    context.arc(23, y - 1.5, 3, Math.PI, 2 * Math.PI);
    context.stroke();
  }
  context.restore();
}

function label(context, text, x, y, align, colour = LABEL) {
  context.textAlign = align;
  context.lineWidth = 3;
  context.lineJoin = "round";
  context.strokeStyle = "rgba(0, 0, 0, 0.75)";
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}

/** Draw the plane's name and slice number, orientation marks at its edges, and a scale bar. */
export function drawLabels(context, plane) {
  const { viewer, width, height } = plane;
  const marks = viewer.geometry.planeMarks(plane.plane);
  context.textBaseline = "middle";
  context.font = `600 13px ${FONT}`;
  label(context, marks.left, 14, height / 2, "center", "#ffd479");
  label(context, marks.right, width - 22, height / 2, "center", "#ffd479");
  label(context, marks.bottom, width / 2, height - 13, "center", "#ffd479");
  context.font = `600 12px ${FONT}`;
  label(context, plane.axes.name, 12, 16, "left");
  const nameWidth = context.measureText(plane.axes.name).width;
  context.font = `12px ${FONT}`;
  const place = `${plane.index + 1} / ${plane.sliceCount}`;
  label(context, place, 20 + nameWidth, 16, "left", MUTED);
  const clear = 20 + nameWidth + context.measureText(place).width + 14; // right of the name and number in a narrow plane
  context.font = `600 13px ${FONT}`;
  label(context, marks.top, Math.max(width / 2, clear), 14, "center", "#ffd479");
  const { scale } = plane.transform;
  const lengths = [1, 2, 5, 10, 20, 50, 100, 200];
  const length = lengths.filter((mm) => mm * scale <= Math.min(120, width / 4)).pop() ?? 1;
  const right = width - 22;
  const bottom = height - 14;
  context.strokeStyle = MUTED;
  context.lineWidth = 1.5;
  context.beginPath();
  context.moveTo(right - length * scale, bottom - 4);
  context.lineTo(right - length * scale, bottom);
  context.lineTo(right, bottom);
  context.lineTo(right, bottom - 4);
  context.stroke();
  context.font = `11px ${FONT}`;
  label(context, length >= 10 ? `${length / 10} cm` : `${length} mm`, right - length * scale - 6, bottom - 3, "right", MUTED);
}
