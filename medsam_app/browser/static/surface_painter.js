/** WebGL 2 renderer for surfaces, slices and lines. */

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
/** kind 0: a lit surface; 1: a slice with transparent dark parts; 2: a line. */
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
  /** Create a painter for a canvas; null without WebGL 2. */
  static on(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: true, alpha: false });
    return gl && new Painter(gl);
  }

  constructor(gl) {
    this.gl = gl;
    this.program = build(gl);
    this.uniforms = Object.fromEntries(["rotation", "centre", "scale", "pan", "kind", "colour"].map((name) => [name, gl.getUniformLocation(this.program, name)]));
    this.quad = this.arrays();
    this.segments = this.arrays();
    this.textures = new Map();
  }

  /** Vertex array for data that changes with every draw: position (3 floats) and texture coordinates (2 floats). */
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

  /** Upload a mesh to the graphics card. @param {{vertices: Float32Array, triangles: Uint32Array}} mesh */
  take(mesh) {
    const { gl } = this;
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    const buffers = [mesh.vertices, normals(mesh)].map((values, location) => {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(location);
      gl.vertexAttribPointer(location, 3, gl.FLOAT, false, 0, 0);
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

  /** Clear the canvas and set the camera; see SurfaceView.view. */
  begin(view) {
    const { gl, uniforms } = this;
    gl.viewport(0, 0, gl.canvas.width, gl.canvas.height);
    gl.clearColor(0.02, 0.027, 0.04, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    gl.uniformMatrix3fv(uniforms.rotation, true, view.rotation.flat());
    gl.uniform3fv(uniforms.centre, view.centre);
    gl.uniform3f(uniforms.scale, (2 * view.scale) / view.width, (2 * view.scale) / view.height, 0.5 / view.radius);
    gl.uniform2f(uniforms.pan, (2 * view.pan[0]) / view.width, (-2 * view.pan[1]) / view.height);
  }

  mesh(mesh, colour, selected) {
    const { gl, uniforms } = this;
    const rgb = [1, 3, 5].map((n) => parseInt(colour.slice(n, n + 2), 16) / 255);
    gl.uniform1i(uniforms.kind, 0);
    gl.uniform3fv(uniforms.colour, rgb.map((value) => (selected ? value : value * 0.82)));
    gl.bindVertexArray(mesh.array);
    gl.drawElements(gl.TRIANGLES, mesh.triangles.length, gl.UNSIGNED_INT, 0);
  }

  /** Draw a plane's slice with transparent dark parts. @param {number[][]} corners see SurfaceView.sliceCorners */
  slice(plane, corners) {
    const { gl, uniforms } = this;
    plane.paintSlice();
    this.texture(plane);
    const textureCoordinates = [[0, 0], [1, 0], [0, 1], [1, 1]];
    this.fill(this.quad, corners, textureCoordinates);
    gl.uniform1i(uniforms.kind, 1);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    gl.depthMask(false);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    gl.depthMask(true);
    gl.disable(gl.BLEND);
  }

  /** Draw lines. @param {number[][]} ends two end points in mm per line */
  lines(ends, colour) {
    const { gl, uniforms } = this;
    this.fill(this.segments, ends, []);
    gl.uniform1i(uniforms.kind, 2);
    gl.uniform3fv(uniforms.colour, colour);
    gl.drawArrays(gl.LINES, 0, ends.length);
  }

  fill({ array, buffer }, points, textureCoordinates) {
    const { gl } = this;
    const values = new Float32Array(points.flatMap((point, n) => [...point, ...(textureCoordinates[n] ?? [0, 0])]));
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
  }

  /** Bind the texture of a plane's slice; it is uploaded again only if the slice has changed. */
  texture(plane) {
    const { gl } = this;
    let entry = this.textures.get(plane.plane);
    if (!entry) this.textures.set(plane.plane, (entry = { texture: gl.createTexture(), canvas: null, painted: "" }));
    gl.bindTexture(gl.TEXTURE_2D, entry.texture);
    if (entry.canvas === plane.slice && entry.painted === plane.painted) return;
    Object.assign(entry, { canvas: plane.slice, painted: plane.painted });
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
  ["position", "normal", "place"].forEach((name, location) => gl.bindAttribLocation(program, location, name));
  gl.linkProgram(program);
  return program;
}

/** Outward normals at the vertices: sum of the normals of the adjacent triangles, weighted by area. */
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
