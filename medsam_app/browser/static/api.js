/**
 * Client of the server's HTTP API. All requests are same-origin. The session token is sent in a header:
 * no other site can use it, and it never appears in a URL.
 */

import { formatBytes } from "./dom.js";

const BASE = new URL("../api/", import.meta.url);
const SESSION_HEADER = "X-Medsam-Session";
const STORAGE_KEY = "medsam-session";
/** Header with the number of the volume that the page shows, and the routes that do not need it. */
const VOLUME_HEADER = "X-Medsam-Volume";
const WITHOUT_VOLUME = ["open", "files", "upload", "upload-folder", "progress", "volume", "labels", "worklist"];

/** Error response of the server, with a message for the user. */
export class ServerError extends Error {
  constructor(message, status, choice) {
    super(message);
    this.status = status;
    this.choice = choice;
  }
}

export class Api {
  constructor() {
    this.token = null;
    this.who = ""; // name that the user's work is signed with
    this.opened = null; // number of the volume shown; the session may have opened another one since
  }

  /** Resume this tab's session after a reload, or start a new one. */
  async connect() {
    const storedToken = sessionStorage.getItem(STORAGE_KEY);
    const response = await fetch(new URL("session", BASE), { method: "POST", headers: storedToken ? { [SESSION_HEADER]: storedToken } : {} });
    const hello = await this.json(response);
    this.token = hello.token;
    sessionStorage.setItem(STORAGE_KEY, hello.token);
    return hello;
  }

  async request(path, options = {}) {
    let response;
    const volumeHeader = this.opened === null || WITHOUT_VOLUME.includes(path.split(/[/?]/)[0]) ? {} : { [VOLUME_HEADER]: String(this.opened) };
    try {
      response = await fetch(new URL(path, BASE), { ...options, headers: { [SESSION_HEADER]: this.token, "X-Medsam-Who": encodeURIComponent(this.who), ...volumeHeader, ...options.headers } });
    } catch {
      throw new ServerError("The server does not answer. Is it still running?", 0);
    }
    if (!response.ok) await this.json(response);
    return response;
  }

  async json(response) {
    const body = await response.json().catch(() => ({}));
    if (response.ok) return body;
    throw new ServerError(body.error ?? `The server answered with status ${response.status}.`, response.status, body.choice);
  }

  post(path, body, headers = {}) {
    return this.request(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers },
      body: JSON.stringify(body),
    });
  }

  /** @returns {Promise<{volume: object|null, state: object}>} */
  async open(source) {
    return this.json(await this.post("open", source));
  }

  async files(folder, path) {
    const query = new URLSearchParams({ root: String(folder), path });
    return this.json(await this.request(`files?${query}`));
  }

  async progress() {
    return this.json(await this.request("progress"));
  }

  /**
   * Apply an action to the session.
   * @param {object} action see medsam_app.browser.routes.actions
   * @param {string[]} have keys of the masks that this page already has
   * @param {number} opened number of the volume that the action applies to
   */
  async act(action, have, opened = this.opened) {
    const volumeHeader = opened === null ? {} : { [VOLUME_HEADER]: String(opened) };
    return decodeFrame(await (await this.post("act", { action, have }, volumeHeader)).arrayBuffer());
  }

  /** Request the model's uncertainty about an object's mask. @returns {Promise<{worst: number[]|null, masks: object[]}>} */
  async doubt(object) {
    return decodeFrame(await (await this.request(`doubt?${new URLSearchParams({ object })}`)).arrayBuffer());
  }

  /** Request the edit history of an object. @returns {Promise<{steps: object[]}>} */
  async history(object) {
    return this.json(await this.request(`history?${new URLSearchParams({ object })}`));
  }

  /** Upload a label set. @returns {Promise<{labels: object[]}>} */
  async openLabels(file) {
    return this.json(await this.request(`labels?${new URLSearchParams({ name: file.name })}`, { method: "POST", body: file }));
  }

  async openPrompts(file, have) {
    const query = new URLSearchParams({ have: have.join(",") });
    const response = await this.request(`prompts?${query}`, { method: "POST", body: file });
    return decodeFrame(await response.arrayBuffer());
  }

  /** Download the voxels of the session's volume; calls `onProgress(fraction)` as they arrive. */
  async voxels(bytes, onProgress) {
    const response = await this.request("volume");
    const buffer = allocate(bytes);
    const target = new Uint8Array(buffer);
    const reader = response.body.getReader();
    let received = 0;
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true }));
      if (done) break;
      if (received + value.length > bytes) throw new ServerError("The server sent more voxels than it announced.", 0);
      target.set(value, received);
      received += value.length;
      onProgress(received / bytes);
    }
    if (received !== bytes) throw new ServerError("The connection broke while the volume was loading; open it again.", 0);
    return buffer;
  }

  /** Upload a single-file volume. */
  upload(file, onProgress) {
    return this.send("upload", file.name, file, onProgress);
  }

  /**
   * Upload the files of a folder in one request. The body holds the length of the file list (uint32, little
   * endian), the list of names and sizes as JSON, and the files. A Blob of files only refers to them, so the
   * browser streams them from disk instead of loading them into memory.
   */
  uploadFolder(name, files, onProgress) {
    const list = new TextEncoder().encode(JSON.stringify(files.map((file) => ({ name: file.name, size: file.size }))));
    const length = new DataView(new ArrayBuffer(4));
    length.setUint32(0, list.length, true);
    return this.send("upload-folder", name, new Blob([length, list, ...files]), onProgress);
  }

  /** Send a body with upload progress: XMLHttpRequest, because fetch reports none. */
  send(path, name, body, onProgress) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", new URL(`${path}?${new URLSearchParams({ name })}`, BASE));
      request.setRequestHeader(SESSION_HEADER, this.token);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.responseType = "json";
      request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
      request.onload = () => {
        if (request.status < 300) resolve(request.response);
        else reject(new ServerError(request.response?.error ?? `The upload failed with status ${request.status}.`, request.status));
      };
      request.onerror = () => reject(new ServerError(`The upload of ${name} broke off; try it again.`, 0));
      request.send(body);
    });
  }

  /** @returns {Promise<{refused: string}>} why the volume cannot be saved as a DICOM segmentation; empty if it can */
  async segmentation() {
    return this.json(await this.request("segmentation"));
  }

  /** Request the measurements of an object. @returns {Promise<{measurement: object|null, unit: string}>} */
  async measurements(object) {
    return this.json(await this.request(`measurements?${new URLSearchParams({ object })}`));
  }

  /**
   * Request the surface mesh of an object's mask.
   * @returns {Promise<{key: string, vertices: Float32Array, triangles: Uint32Array}>} key of the mask;
   *   vertices: (x, y, z) in mm, RAS, flattened; triangles: three vertex indices each, flattened
   */
  async surface(object) {
    const buffer = await (await this.request(`surface?${new URLSearchParams({ object })}`)).arrayBuffer();
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    const vertices = new Float32Array(buffer, 4 + length, 3 * header.vertices);
    return { key: header.key, vertices, triangles: new Uint32Array(buffer, 4 + length + vertices.byteLength, 3 * header.triangles) };
  }

  /** Compare the objects with a mask file, see medsam_app.browser.routes.compare. */
  async compare(request) {
    return decodeFrame(await (await this.post("compare", request)).arrayBuffer());
  }

  /** Download another frame of the open file. @returns {Promise<{buffer: ArrayBuffer, dtype: string}>} */
  async frame(number) {
    const response = await this.request(`frame?${new URLSearchParams({ number: String(number) })}`);
    return { buffer: await response.arrayBuffer(), dtype: response.headers.get("X-Medsam-Dtype") };
  }

  /** Save a response of the server as a download. @returns {Promise<string>} the file's name */
  async download(path, options) {
    const response = await this.request(path, options);
    const disposition = response.headers.get("Content-Disposition") ?? "";
    return this.saveFile(await response.blob(), decodeURIComponent(/filename\*=UTF-8''([^;]+)/.exec(disposition)?.[1] ?? "download"));
  }

  /** Save bytes as a download. @returns {string} the file's name */
  saveFile(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    return name;
  }
}

/** Allocate memory for a volume's voxels. */
function allocate(bytes) {
  try {
    return new ArrayBuffer(bytes);
  } catch {
    throw new ServerError(`The browser has no room for the ${formatBytes(bytes)} of this volume; close other pages, or open a smaller one.`, 413);
  }
}

/**
 * Decode a frame: the length of the header (uint32, little endian), the header as JSON, then the bits of the
 * masks in the order of header.masks, each raw or deflated.
 */
async function decodeFrame(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let offset = 4 + length;
  for (const mask of header.masks) {
    const stored = new Uint8Array(buffer, offset, mask.bytes);
    offset += mask.bytes;
    mask.bits = mask.deflated ? await inflate(stored) : stored;
  }
  return header;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
