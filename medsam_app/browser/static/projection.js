/** Slab projections: maximum, minimum or mean intensity over several slices. */

import { PLANES } from "./geometry.js";
import { drawBadge } from "./overlay.js";

/** [kind, name in the menu, label on the plane] */
export const KINDS = [
  ["off", "Single slices", ""],
  ["max", "Maximum (MIP)", "MIP"],
  ["min", "Minimum", "MinIP"],
  ["mean", "Mean", "Mean"],
];

export class Projection {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.kind = "off";
    this.slab = 20; // mm
    viewer.overlays.push(this);
  }

  get on() {
    return this.kind !== "off";
  }

  choose(kind) {
    this.kind = kind;
    this.viewer.redraw();
  }

  next() {
    const at = KINDS.findIndex(([kind]) => kind === this.kind);
    this.choose(KINDS[(at + 1) % KINDS.length][0]);
  }

  setSlab(mm) {
    if (!(mm > 0)) return this.viewer.toasts.show("The thickness of a slab is a number of millimetres above 0.", "warning");
    this.slab = mm;
    return this.viewer.redraw();
  }

  /** First and last slice of the slab around a slice. */
  range(plane, index) {
    const { w } = PLANES[plane];
    const { shape, spacing } = this.viewer.geometry;
    const half = Math.max(0, (this.slab / spacing[w] - 1) / 2);
    return [Math.max(0, Math.round(index - half)), Math.min(shape[w] - 1, Math.round(index + half))];
  }

  drawOver(context, plane) {
    if (!this.on) return;
    const [from, to] = this.range(plane.plane, plane.index);
    const thick = (to - from + 1) * this.viewer.geometry.spacing[plane.axes.w];
    const text = `${KINDS.find(([kind]) => kind === this.kind)[2]} ${Number(thick.toPrecision(3))} mm`;
    drawBadge(context, text);
  }
}

/**
 * Project a slab; both axes are reversed like the picture.
 * @param {{data: ArrayLike<number>, shape: number[]}} image
 * @param {"max"|"min"|"mean"} kind
 * @returns {Float32Array} width x height
 */
export function project({ data, shape }, plane, from, to, kind) {
  const { u, v, w } = PLANES[plane];
  const strides = [1, shape[0], shape[0] * shape[1]];
  const width = shape[u];
  const height = shape[v];
  const out = new Float32Array(width * height).fill({ max: -Infinity, min: Infinity, mean: 0 }[kind]);
  const combine = { max: (a, b) => (b > a ? b : a), min: (a, b) => (b < a ? b : a), mean: (a, b) => a + b }[kind];
  for (let slice = from; slice <= to; slice++) {
    let pixel = 0;
    for (let row = height - 1; row >= 0; row--) {
      let voxel = slice * strides[w] + row * strides[v] + (width - 1) * strides[u];
      for (let column = 0; column < width; column++, voxel -= strides[u], pixel++) out[pixel] = combine(out[pixel], data[voxel]);
    }
  }
  if (kind === "mean") for (let pixel = 0; pixel < out.length; pixel++) out[pixel] /= to - from + 1;
  return out;
}
