/** Masks of objects: bits of the bounding box, and their slices as coloured pixels and outlines. */

import { PLANES } from "./geometry.js";

/** Size of the mask cache in bytes; it lets undo and redo work without a transfer. */
const CACHE_BYTES = 64e6;

export class Mask {
  /**
   * @param {{key: string, start: number[], size: number[], first: number, strides: number[]}} header start and
   *   size of the bounding box in RAS voxels; first: index of the bit of its lowest corner; strides: bits between
   *   neighbouring voxels along each axis
   * @param {Uint8Array} bits one bit per voxel, least significant bit first
   */
  constructor(header, bits) {
    this.key = header.key;
    this.start = header.start;
    this.size = header.size;
    this.first = header.first;
    this.strides = header.strides;
    this.bits = bits;
    this.outlines = new Map();
  }

  /** Whether a voxel (RAS indices) is inside the mask. */
  has(xyz) {
    const [x, y, z] = xyz.map((value, axis) => value - this.start[axis]);
    const [nx, ny, nz] = this.size;
    if (x < 0 || y < 0 || z < 0 || x >= nx || y >= ny || z >= nz) return false;
    const bit = this.first + x * this.strides[0] + y * this.strides[1] + z * this.strides[2];
    return ((this.bits[bit >> 3] >> (bit & 7)) & 1) === 1;
  }

  /**
   * One slice as bytes, both axes reversed like the picture.
   * @returns {{pixels: Uint8Array, width: number, height: number} | null} null if the slice does not meet the box
   */
  slice(plane, index) {
    const { u, v, w } = PLANES[plane];
    const depth = index - this.start[w];
    if (depth < 0 || depth >= this.size[w]) return null;
    const { bits, first, strides } = this;
    const width = this.size[u];
    const height = this.size[v];
    const pixels = new Uint8Array(width * height);
    let pixel = 0;
    for (let row = height - 1; row >= 0; row--) {
      let bit = first + depth * strides[w] + row * strides[v] + (width - 1) * strides[u];
      for (let column = 0; column < width; column++, bit -= strides[u]) pixels[pixel++] = (bits[bit >> 3] >> (bit & 7)) & 1;
    }
    return { pixels, width, height };
  }

  /** Position of the box's slice in the picture: [voxels to its left, voxels above it]. */
  offset(plane, shape) {
    const { u, v } = PLANES[plane];
    return [shape[u] - this.start[u] - this.size[u], shape[v] - this.start[v] - this.size[v]];
  }

  /**
   * Fill of a slice as a small canvas, and its outline along voxel edges as a path in voxel units.
   * The last few slices are cached, so that panning and toggling the masks are fast.
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

/** Path along the edges between inside and outside; adjacent edges are joined into one line. */
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

/** Cache of masks by key, with least recently used eviction. */
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
    this.bytes += mask.bits.length;
  }

  /** Drop unused masks until the cache is within its limit. */
  trim(used) {
    for (const [key, mask] of this.masks) {
      if (this.bytes <= CACHE_BYTES) return;
      if (used.has(key)) continue;
      this.masks.delete(key);
      this.bytes -= mask.bits.length;
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
