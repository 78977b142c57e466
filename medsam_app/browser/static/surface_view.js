/** Geometry of the 3D view: rotation, projection of points, and picking. */

/** Rotation that views from the front, slightly from the patient's left and above; rows: right, up, towards the eye. */
export function frontView() {
  return multiply(turn(-0.45, 0.3), [[-1, 0, 0], [0, 0, 1], [0, 1, 0]]);
}

/** Rotation about the vertical axis of the screen, then about the horizontal one, in radians. */
export function turn(about, over) {
  const [c, s, d, t] = [Math.cos(about), Math.sin(about), Math.cos(over), Math.sin(over)];
  return multiply([[1, 0, 0], [0, d, -t], [0, t, d]], [[c, 0, s], [0, 1, 0], [-s, 0, c]]);
}

export function multiply(a, b) {
  return a.map((row) => [0, 1, 2].map((n) => row[0] * b[0][n] + row[1] * b[1][n] + row[2] * b[2][n]));
}

/**
 * Project a point to the pane.
 * @param {object} view see SurfaceView.view
 * @param {number[]} point mm
 * @returns {number[]} x and y in CSS pixels of the pane, and depth in mm from the centre towards the eye
 */
export function project(view, point) {
  const d = [0, 1, 2].map((axis) => point[axis] - view.centre[axis]);
  const [x, y, z] = view.rotation.map((row) => row[0] * d[0] + row[1] * d[1] + row[2] * d[2]);
  return [view.width / 2 + x * view.scale + view.pan[0], view.height / 2 - y * view.scale + view.pan[1], z];
}

/**
 * Find the point of the nearest surface under the pointer, in mm; null if there is none.
 * @param {object} view see SurfaceView.view
 * @param {[number, number]} at CSS pixels of the pane
 * @param {{vertices: Float32Array, triangles: Uint32Array}[]} meshes
 */
export function hitPoint(view, at, meshes) {
  let best = null;
  for (const { vertices, triangles } of meshes) {
    const projected = new Float32Array(vertices.length);
    for (let n = 0; n < vertices.length; n += 3) projected.set(project(view, [vertices[n], vertices[n + 1], vertices[n + 2]]), n);
    for (let n = 0; n < triangles.length; n += 3) {
      const [a, b, c] = [3 * triangles[n], 3 * triangles[n + 1], 3 * triangles[n + 2]];
      const ux = projected[b] - projected[a];
      const uy = projected[b + 1] - projected[a + 1];
      const vx = projected[c] - projected[a];
      const vy = projected[c + 1] - projected[a + 1];
      const area = ux * vy - uy * vx;
      if (area === 0) continue;
      const px = at[0] - projected[a];
      const py = at[1] - projected[a + 1];
      const s = (px * vy - py * vx) / area;
      const t = (ux * py - uy * px) / area;
      if (s < 0 || t < 0 || s + t > 1) continue;
      const depth = projected[a + 2] + s * (projected[b + 2] - projected[a + 2]) + t * (projected[c + 2] - projected[a + 2]);
      if (best && depth <= best.depth) continue;
      const point = [0, 1, 2].map((axis) => vertices[a + axis] + s * (vertices[b + axis] - vertices[a + axis]) + t * (vertices[c + axis] - vertices[a + axis]));
      best = { depth, point };
    }
  }
  return best?.point ?? null;
}
