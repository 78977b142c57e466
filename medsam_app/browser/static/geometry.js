/**
 * Axes, planes and orientation marks.
 *
 * The browser stores the volume in the axis order closest to RAS (x to the patient's right, y to
 * anterior, z to superior), with x varying fastest. The server uses voxel indices (i, j, k) of the
 * file; `toFile` and `toRas` convert between the two. All three planes are drawn with both axes reversed,
 * which is the radiological convention: the patient's right at the left of the screen, anterior (or
 * superior) at the top, and in the sagittal plane anterior at the left.
 */

/** For each plane the RAS axes that run horizontally (u), vertically (v) and through it (w). */
export const PLANES = {
  axial: { name: "Axial", u: 0, v: 1, w: 2 },
  coronal: { name: "Coronal", u: 0, v: 2, w: 1 },
  sagittal: { name: "Sagittal", u: 1, v: 2, w: 0 },
};

const LETTERS = [["R", "L"], ["A", "P"], ["S", "I"]];

export class Geometry {
  /** @param {{shape: number[], spacing: number[], axes: number[], flips: boolean[], affine: number[][]}} meta
   *  shape and spacing along the RAS axes; axes, flips: as in medsam_app.grid.geometry.RasView; affine of the file */
  constructor(meta) {
    this.shape = meta.shape;
    this.spacing = meta.spacing;
    this.axes = meta.axes;
    this.flips = meta.flips;
    this.affine = meta.affine;
  }

  /** Convert voxel indices of the RAS-ordered volume to voxel indices of the file. */
  toFile(xyz) {
    const ijk = [0, 0, 0];
    for (let axis = 0; axis < 3; axis++) {
      ijk[this.axes[axis]] = this.flips[axis] ? this.shape[axis] - 1 - xyz[axis] : xyz[axis];
    }
    return ijk;
  }

  /** Convert voxel indices of the file to voxel indices of the RAS-ordered volume. */
  toRas(ijk) {
    return [0, 1, 2].map((axis) => {
      const index = ijk[this.axes[axis]];
      return this.flips[axis] ? this.shape[axis] - 1 - index : index;
    });
  }

  /** Convert voxel indices of the file to millimetres in RAS. */
  toWorld(ijk) {
    return [0, 1, 2].map((row) => {
      const [a, b, c, d] = this.affine[row];
      return a * ijk[0] + b * ijk[1] + c * ijk[2] + d;
    });
  }

  /** Convert millimetres in RAS to voxel indices of the file (fractional). */
  fromWorld(point) {
    const [p, q, r] = [0, 1, 2].map((column) => this.affine.slice(0, 3).map((row) => row[column]));
    const d = point.map((value, row) => value - this.affine[row][3]);
    const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
    const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    const volume = dot(p, cross(q, r));
    return [dot(d, cross(q, r)) / volume, dot(p, cross(d, r)) / volume, dot(p, cross(q, d)) / volume];
  }

  /** Whether voxel indices (RAS order) are inside the volume. */
  contains(xyz) {
    return xyz.every((value, axis) => value >= -0.5 && value <= this.shape[axis] - 0.5);
  }

  /** Round `xyz` to the nearest voxel inside the volume. */
  nearest(xyz) {
    return xyz.map((value, axis) => Math.max(0, Math.min(this.shape[axis] - 1, Math.round(value))));
  }

  /**
   * Letters of the positive and the negative end of a RAS axis, from the affine. An end has two letters
   * if the axis is oblique by more than about 20 degrees.
   * @returns {[string, string]}
   */
  marks(axis) {
    const column = this.axes[axis];
    const sign = this.flips[axis] ? -1 : 1;
    const direction = [0, 1, 2].map((row) => (sign * this.affine[row][column]) / this.spacing[axis]);
    const order = [0, 1, 2].sort((a, b) => Math.abs(direction[b]) - Math.abs(direction[a]));
    let ahead = "";
    let behind = "";
    for (const row of order) {
      if (ahead && Math.abs(direction[row]) < 0.35) break;
      const positive = direction[row] >= 0;
      ahead += LETTERS[row][positive ? 0 : 1];
      behind += LETTERS[row][positive ? 1 : 0];
    }
    return [ahead, behind];
  }

  /** @returns {{left: string, right: string, top: string, bottom: string}} marks at the edges of a plane */
  planeMarks(plane) {
    const { u, v } = PLANES[plane];
    const [left, right] = this.marks(u);
    const [top, bottom] = this.marks(v);
    return { left, right, top, bottom };
  }
}
