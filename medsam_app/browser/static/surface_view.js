/** The arithmetic of the view in space: turning, where a point is seen, what lies under the pointer. */

/** From the front, a little from the patient's left and above; rows are right, up and towards the eye. */
export function frontView() {
  return multiply(turn(-0.45, 0.3), [[-1, 0, 0], [0, 0, 1], [0, 1, 0]]);
}

/** A turn about the upright axis of the screen, then about the level one, in radians. */
export function turn(about, over) {
  const [c, s, d, t] = [Math.cos(about), Math.sin(about), Math.cos(over), Math.sin(over)];
  return multiply([[1, 0, 0], [0, d, -t], [0, t, d]], [[c, 0, s], [0, 1, 0], [-s, 0, c]]);
}

export function multiply(a, b) {
  return a.map((row) => [0, 1, 2].map((n) => row[0] * b[0][n] + row[1] * b[1][n] + row[2] * b[2][n]));
}

/**
 * Where a point is seen.
 * @param {object} view see SurfaceView.view
 * @param {number[]} point mm
 * @returns {number[]} x and y in CSS pixels of the pane, and mm towards the eye from the centre
 */
export function project(view, point) {
  const d = [0, 1, 2].map((axis) => point[axis] - view.centre[axis]);
  const [x, y, z] = view.rotation.map((row) => row[0] * d[0] + row[1] * d[1] + row[2] * d[2]);
  return [view.width / 2 + x * view.scale + view.pan[0], view.height / 2 - y * view.scale + view.pan[1], z];
}

/**
 * The point of the nearest surface under the pointer, in mm; null where there is none.
 * @param {object} view
 * @param {[number, number]} at CSS pixels of the pane
 * @param {{vertices: Float32Array, triangles: Uint32Array}[]} meshes
 */
export function hitPoint(view, at, meshes) {
  let best = null;
  for (const { vertices, triangles } of meshes) {
    const seen = new Float32Array(vertices.length);
    for (let n = 0; n < vertices.length; n += 3) seen.set(project(view, [vertices[n], vertices[n + 1], vertices[n + 2]]), n);
    for (let n = 0; n < triangles.length; n += 3) {
      const [a, b, c] = [3 * triangles[n], 3 * triangles[n + 1], 3 * triangles[n + 2]];
      const ux = seen[b] - seen[a];
      const uy = seen[b + 1] - seen[a + 1];
      const vx = seen[c] - seen[a];
      const vy = seen[c + 1] - seen[a + 1];
      const area = ux * vy - uy * vx;
      if (area === 0) continue;
      const px = at[0] - seen[a];
      const py = at[1] - seen[a + 1];
      const s = (px * vy - py * vx) / area;
      const t = (ux * py - uy * px) / area;
      if (s < 0 || t < 0 || s + t > 1) continue;
      const depth = seen[a + 2] + s * (seen[b + 2] - seen[a + 2]) + t * (seen[c + 2] - seen[a + 2]);
      if (best && depth <= best.depth) continue;
      const point = [0, 1, 2].map((axis) => vertices[a + axis] + s * (vertices[b + axis] - vertices[a + axis]) + t * (vertices[c + axis] - vertices[a + axis]));
      best = { depth, point };
    }
  }
  return best?.point ?? null;
}
