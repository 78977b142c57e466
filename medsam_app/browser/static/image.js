/** Voxels of the volume in one typed array, mapped to grey through a look-up table. */

import { PLANES } from "./geometry.js";

const ARRAYS = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, float32: Float32Array };
const OPAQUE = 0xff000000;
/** Number of windows set so far, over all volumes. */
let windows = 0;

/** Window presets of CT as [label, centre, width] in Hounsfield units. */
export const CT_PRESETS = [
  ["Soft tissue", 40, 400],
  ["Lung", -600, 1500],
  ["Bone", 400, 1800],
  ["Brain", 40, 80],
  ["Liver", 80, 160],
];

export class VolumeImage {
  /**
   * @param {{shape: number[], dtype: string}} meta shape in RAS order
   * @param {ArrayBuffer} buffer voxels, x fastest, little endian
   */
  constructor(meta, buffer) {
    this.shape = meta.shape;
    this.data = new ARRAYS[meta.dtype](buffer);
    this.integer = meta.dtype !== "float32";
    this.offset = meta.dtype === "int16" ? 32768 : 0;
    this.table = new Uint32Array(meta.dtype === "uint8" ? 256 : 65536);
    this.setWindow(meta.window[0], meta.window[1]);
  }

  /** Intensity of one voxel (RAS indices). */
  value(x, y, z) {
    return this.data[x + this.shape[0] * (y + this.shape[1] * z)];
  }

  /** Map [low, high] to black..white. For integer volumes the table covers every possible value. */
  setWindow(low, high) {
    this.low = low;
    this.high = Math.max(high, low + 1e-6);
    this.windowVersion = ++windows; // unique across all images, frames included
    const { table, offset } = this;
    const scale = this.integer ? 255 / (this.high - low) : 255 / (table.length - 1);
    for (let index = 0; index < table.length; index++) {
      const value = this.integer ? (index - offset - low) * scale : index * scale;
      const grey = value <= 0 ? 0 : value >= 255 ? 255 : value | 0;
      table[index] = OPAQUE | (grey << 16) | (grey << 8) | grey;
    }
  }

  /**
   * Paint one slice, both axes reversed (see geometry.js), into RGBA pixels.
   * @param {string} plane
   * @param {number} index slice along the plane's w axis
   * @param {Uint32Array} out width x height pixels
   */
  paint(plane, index, out) {
    const { u, v, w } = PLANES[plane];
    const strides = [1, this.shape[0], this.shape[0] * this.shape[1]];
    const width = this.shape[u];
    const height = this.shape[v];
    const stepU = strides[u];
    const stepV = strides[v];
    const last = index * strides[w] + (width - 1) * stepU;
    const { data, table, offset } = this;
    let pixel = 0;
    if (this.integer) {
      for (let row = height - 1; row >= 0; row--) {
        let voxel = last + row * stepV;
        for (let column = 0; column < width; column++, voxel -= stepU) {
          out[pixel++] = table[data[voxel] + offset];
        }
      }
      return;
    }
    for (let row = height - 1; row >= 0; row--) {
      let voxel = last + row * stepV;
      for (let column = 0; column < width; column++, voxel -= stepU) out[pixel++] = this.grey(data[voxel]);
    }
  }

  /** RGBA grey of an intensity, which may be fractional. */
  grey(intensity) {
    const { table } = this;
    if (this.integer) return table[Math.max(0, Math.min(table.length - 1, Math.round(intensity) + this.offset))];
    const top = table.length - 1;
    const value = ((intensity - this.low) / (this.high - this.low)) * top;
    return table[value <= 0 ? 0 : value >= top ? top : value | 0];
  }

  /** Paint intensities that are already in the picture's pixel order. */
  paintValues(values, out) {
    for (let pixel = 0; pixel < values.length; pixel++) out[pixel] = this.grey(values[pixel]);
  }
}
