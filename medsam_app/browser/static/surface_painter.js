/** Surfaces, slices and lines drawn by WebGL 2. */

const VERTEX = `#version 300 es
uniform mat3 rotation;
uniform vec3 centre;
uniform vec3 scale;
uniform vec2 pan;
in vec3 position;
in vec3 normal;
in vec2 place;
out vec3 facing;
out vec2 at;
void main() {
  vec3 seen = rotation * (position - centre);
  facing = rotation * normal;
  at = place;
  gl_Position = vec4(seen.xy * scale.xy + pan, -seen.z * scale.z, 1.0);
}`;
/** kind 0: a lit surface; 1: a slice, dark parts see-through; 2: a line. */
const FRAGMENT = `#version 300 es
precision highp float;
uniform int kind;
uniform vec3 colour;
uniform sampler2D picture;
in vec3 facing;
in vec2 at;
out vec4 shown;
void main() {
  if (kind == 2) { shown = vec4(colour, 1.0); return; }
  if (kind == 1) {
    float grey = texture(picture, at).r;
    shown = vec4(vec3(grey), 0.62 * smoothstep(0.04, 0.3, grey) + 0.1);
    return;
  }
  vec3 n = normalize(facing);
  if (!gl_FrontFacing) n = -n;
  float front = max(n.z, 0.0);
  float key = max(dot(n, normalize(vec3(-0.5, 0.6, 0.65))), 0.0);
  float shine = pow(max(dot(n, normalize(vec3(-0.25, 0.3, 0.9))), 0.0), 40.0);
  shown = vec4(colour * (0.26 + 0.42 * front + 0.5 * key) + 0.14 * shine, 1.0);
}`;

export class Painter {
  /** A painter on a canvas, or null where there is no WebGL 2. */
  static on(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: true, alpha: false });
    return gl && new Painter(gl);
  }

  constructor(gl) {
    this.gl = gl;
    this.program = build(gl);
    this.at = Object.fromEntries(["rotation", "centre", "scale", "pan", "kind", "colour"].map((name) => [name, gl.getUniformLocation(this.program, name)]));
    this.quad = this.arrays();
    this.segments = this.arrays();
    this.textures = new Map();
  }

  /** Vertices of a few floats each that change all the time: position, and place on a picture. */
  arrays() {
    const { gl } = this;
    const array = gl.createVertexArray();
    const buffer = gl.createBuffer();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 20, 0);
    gl.enableVertexAttribArray(2);
    gl.vertexAttribPointer(2, 2, gl.FLOAT, false, 20, 12);
    gl.bindVertexArray(null);
    return { array, buffer };
  }

  /** Put a surface on the card. @param {{vertices: Float32Array, triangles: Uint32Array}} mesh */
  take(mesh) {
    const { gl } = this;
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    const buffers = [mesh.vertices, normals(mesh)].map((values, place) => {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
      return buffer;
    });
    const order = gl.createBuffer();
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, order);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.triangles, gl.STATIC_DRAW);
    gl.bindVertexArray(null);
    return { ...mesh, array, buffers: [...buffers, order] };
  }

  drop(mesh) {
    for (const buffer of mesh.buffers) this.gl.deleteBuffer(buffer);
    this.gl.deleteVertexArray(mesh.array);
  }

  /** Clear, and look from where `view` says; see SurfaceView.view. */
  begin(view) {
    const { gl, at } = this;
    gl.viewport(0, 0, gl.canvas.width, gl.canvas.height);
    gl.clearColor(0.02, 0.027, 0.04, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    gl.uniformMatrix3fv(at.rotation, true, view.rotation.flat());
    gl.uniform3fv(at.centre, view.centre);
    gl.uniform3f(at.scale, (2 * view.scale) / view.width, (2 * view.scale) / view.height, 0.5 / view.radius);
    gl.uniform2f(at.pan, (2 * view.pan[0]) / view.width, (-2 * view.pan[1]) / view.height);
  }

  mesh(mesh, colour, selected) {
    const { gl, at } = this;
    const rgb = [1, 3, 5].map((n) => parseInt(colour.slice(n, n + 2), 16) / 255);
    gl.uniform1i(at.kind, 0);
    gl.uniform3fv(at.colour, rgb.map((value) => (selected ? value : value * 0.82)));
    gl.bindVertexArray(mesh.array);
    gl.drawElements(gl.TRIANGLES, mesh.triangles.length, gl.UNSIGNED_INT, 0);
  }

  /** A plane's slice, its dark parts see-through. @param {number[][]} corners as sliceCorners gives them */
  slice(plane, corners) {
    const { gl, at } = this;
    plane.paintSlice();
    this.texture(plane);
    const places = [[0, 0], [1, 0], [0, 1], [1, 1]];
    this.fill(this.quad, corners, places);
    gl.uniform1i(at.kind, 1);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    gl.depthMask(false);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    gl.depthMask(true);
    gl.disable(gl.BLEND);
  }

  /** @param {number[][]} ends two a line, in mm */
  lines(ends, colour) {
    const { gl, at } = this;
    this.fill(this.segments, ends, []);
    gl.uniform1i(at.kind, 2);
    gl.uniform3fv(at.colour, colour);
    gl.drawArrays(gl.LINES, 0, ends.length);
  }

  fill({ array, buffer }, points, places) {
    const { gl } = this;
    const values = new Float32Array(points.flatMap((point, n) => [...point, ...(places[n] ?? [0, 0])]));
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
  }

  /** The picture of a plane's slice, sent again only when it is another one. */
  texture(plane) {
    const { gl } = this;
    let kept = this.textures.get(plane.plane);
    if (!kept) this.textures.set(plane.plane, (kept = { texture: gl.createTexture(), canvas: null, painted: "" }));
    gl.bindTexture(gl.TEXTURE_2D, kept.texture);
    if (kept.canvas === plane.slice && kept.painted === plane.painted) return;
    Object.assign(kept, { canvas: plane.slice, painted: plane.painted });
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, plane.slice);
    for (const [name, value] of [[gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE], [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE], [gl.TEXTURE_MIN_FILTER, gl.LINEAR], [gl.TEXTURE_MAG_FILTER, gl.LINEAR]]) {
      gl.texParameteri(gl.TEXTURE_2D, name, value);
    }
  }
}

function build(gl) {
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  ["position", "normal", "place"].forEach((name, place) => gl.bindAttribLocation(program, place, name));
  gl.linkProgram(program);
  return program;
}

/** Directions outwards at the vertices: the mean of the triangles around each, larger ones counting more. */
function normals({ vertices, triangles }) {
  const out = new Float32Array(vertices.length);
  for (let n = 0; n < triangles.length; n += 3) {
    const [a, b, c] = [3 * triangles[n], 3 * triangles[n + 1], 3 * triangles[n + 2]];
    const [ux, uy, uz] = [vertices[b] - vertices[a], vertices[b + 1] - vertices[a + 1], vertices[b + 2] - vertices[a + 2]];
    const [vx, vy, vz] = [vertices[c] - vertices[a], vertices[c + 1] - vertices[a + 1], vertices[c + 2] - vertices[a + 2]];
    const x = uy * vz - uz * vy;
    const y = uz * vx - ux * vz;
    const z = ux * vy - uy * vx;
    for (const at of [a, b, c]) {
      out[at] += x;
      out[at + 1] += y;
      out[at + 2] += z;
    }
  }
  return out;
}
