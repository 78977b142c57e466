/** Masks of objects: the bounding box of each as bytes, its slices as coloured pixels and outlines. */

import { PLANES } from "./geometry.js";

/** Bytes of masks kept so that undo and redo need no transfer. */
const CACHE_BYTES = 256e6;
/** Four voxels, a byte each, of four bits: twenty million voxels are unpacked in the time of a frame. */
const FOUR_VOXELS = Uint32Array.from({ length: 16 }, (_, bits) =>
  [0, 1, 2, 3].reduce((bytes, n) => bytes | (((bits >> n) & 1) << (8 * n)), 0),
);

export class Mask {
  /**
   * @param {{key: string, start: number[], size: number[]}} header bounding box in RAS voxels
   * @param {Uint8Array} bits one bit a voxel, x fastest, least significant bit first
   */
  constructor(header, bits) {
    this.key = header.key;
    this.start = header.start;
    this.size = header.size;
    const count = this.size[0] * this.size[1] * this.size[2];
    const fours = new Uint32Array(2 * Math.ceil(count / 8));
    for (let index = 0, at = 0; at < fours.length; index++) {
      fours[at++] = FOUR_VOXELS[bits[index] & 15];
      fours[at++] = FOUR_VOXELS[bits[index] >> 4];
    }
    this.voxels = new Uint8Array(fours.buffer, 0, count);
    this.outlines = new Map();
  }

  /** Whether a voxel (RAS indices) is inside. */
  has(xyz) {
    const [x, y, z] = xyz.map((value, axis) => value - this.start[axis]);
    const [nx, ny, nz] = this.size;
    if (x < 0 || y < 0 || z < 0 || x >= nx || y >= ny || z >= nz) return false;
    return this.voxels[x + nx * (y + ny * z)] === 1;
  }

  /**
   * One slice as bytes, both axes reversed like the picture.
   * @returns {{pixels: Uint8Array, width: number, height: number} | null} null where the slice misses the box
   */
  slice(plane, index) {
    const { u, v, w } = PLANES[plane];
    const depth = index - this.start[w];
    if (depth < 0 || depth >= this.size[w]) return null;
    const strides = [1, this.size[0], this.size[0] * this.size[1]];
    const width = this.size[u];
    const height = this.size[v];
    const pixels = new Uint8Array(width * height);
    let pixel = 0;
    for (let row = height - 1; row >= 0; row--) {
      let voxel = depth * strides[w] + row * strides[v] + (width - 1) * strides[u];
      for (let column = 0; column < width; column++, voxel -= strides[u]) pixels[pixel++] = this.voxels[voxel];
    }
    return { pixels, width, height };
  }

  /** Voxels of the picture left of and above the box's slice: where to draw it. */
  offset(plane, shape) {
    const { u, v } = PLANES[plane];
    return [shape[u] - this.start[u] - this.size[u], shape[v] - this.start[v] - this.size[v]];
  }

  /**
   * Fill of a slice as a small canvas, and its outline along voxel edges as a path in voxel units.
   * The last few slices are kept, so that panning and blinking cost nothing.
   */
  drawing(plane, index, colour) {
    const id = `${plane}:${index}:${colour}`;
    if (this.outlines.has(id)) return this.outlines.get(id);
    const slice = this.slice(plane, index);
    const drawing = slice && { fill: fillOf(slice, colour), outline: outlineOf(slice) };
    if (this.outlines.size >= 12) this.outlines.delete(this.outlines.keys().next().value);
    this.outlines.set(id, drawing);
    return drawing;
  }
}

function fillOf({ pixels, width, height }, colour) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  const rgb = parseInt(colour.slice(1), 16);
  const value = (0xff000000 | ((rgb & 0xff) << 16) | (rgb & 0xff00) | (rgb >> 16)) >>> 0;
  for (let index = 0; index < pixels.length; index++) if (pixels[index]) out[index] = value;
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Edges between inside and outside, runs joined into one line each. */
function outlineOf({ pixels, width, height }) {
  const path = new Path2D();
  const at = (x, y) => (x >= 0 && y >= 0 && x < width && y < height ? pixels[x + y * width] : 0);
  for (let y = 0; y <= height; y++) {
    let from = -1;
    for (let x = 0; x <= width; x++) {
      const edge = x < width && at(x, y - 1) !== at(x, y);
      if (edge && from < 0) from = x;
      if (!edge && from >= 0) {
        path.moveTo(from, y);
        path.lineTo(x, y);
        from = -1;
      }
    }
  }
  for (let x = 0; x <= width; x++) {
    let from = -1;
    for (let y = 0; y <= height; y++) {
      const edge = y < height && at(x - 1, y) !== at(x, y);
      if (edge && from < 0) from = y;
      if (!edge && from >= 0) {
        path.moveTo(x, from);
        path.lineTo(x, y);
        from = -1;
      }
    }
  }
  return path;
}

/** Masks by key, least recently used dropped first. */
export class MaskCache {
  constructor() {
    this.masks = new Map();
    this.bytes = 0;
  }

  get(key) {
    const mask = this.masks.get(key);
    if (mask) {
      this.masks.delete(key);
      this.masks.set(key, mask);
    }
    return mask;
  }

  put(mask) {
    if (this.masks.has(mask.key)) return;
    this.masks.set(mask.key, mask);
    this.bytes += mask.voxels.length;
  }

  /** Drop what is not in use while over the limit. */
  trim(used) {
    for (const [key, mask] of this.masks) {
      if (this.bytes <= CACHE_BYTES) return;
      if (used.has(key)) continue;
      this.masks.delete(key);
      this.bytes -= mask.voxels.length;
    }
  }

  keys() {
    return [...this.masks.keys()];
  }

  clear() {
    this.masks.clear();
    this.bytes = 0;
  }
}
