/**
 * Talking to the server. Everything is same-origin; the session's token travels in a header, so no
 * other site can use it and it never stands in an address.
 */

import { formatBytes } from "./dom.js";

const BASE = new URL("../api/", import.meta.url);
const HEADER = "X-Medsam-Session";
const KEPT = "medsam-session";
/** What the page says of the volume that it shows, and the requests that are not about it. */
const VOLUME = "X-Medsam-Volume";
const ABOUT_NO_VOLUME = ["open", "files", "upload", "upload-folder", "progress", "volume", "labels", "worklist"];

/** An answer that says what went wrong, in a sentence for the user. */
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
    this.who = ""; // whose work it is, where nobody is logged in
    this.opened = null; // number of the volume that the page shows: the session may have another one by then
  }

  /** Take up this tab's session after a reload, or begin a new one. */
  async connect() {
    const kept = sessionStorage.getItem(KEPT);
    const response = await fetch(new URL("session", BASE), { method: "POST", headers: kept ? { [HEADER]: kept } : {} });
    const hello = await this.json(response);
    this.token = hello.token;
    sessionStorage.setItem(KEPT, hello.token);
    return hello;
  }

  async request(path, options = {}) {
    let response;
    const about = this.opened === null || ABOUT_NO_VOLUME.includes(path.split(/[/?]/)[0]) ? {} : { [VOLUME]: String(this.opened) };
    try {
      response = await fetch(new URL(path, BASE), { ...options, headers: { [HEADER]: this.token, "X-Medsam-Who": encodeURIComponent(this.who), ...about, ...options.headers } });
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
   * Do something to the session.
   * @param {object} action what to do, see medsam_app.browser.routes.actions
   * @param {string[]} have keys of the masks this page holds
   * @param {number} opened number of the volume that it is meant for
   */
  async act(action, have, opened = this.opened) {
    const about = opened === null ? {} : { [VOLUME]: String(opened) };
    return decodeFrame(await (await this.post("act", { action, have }, about)).arrayBuffer());
  }

  /** Where the model is in doubt about an object's mask. @returns {Promise<{worst: number[]|null, masks: object[]}>} */
  async doubt(object) {
    return decodeFrame(await (await this.request(`doubt?${new URLSearchParams({ object })}`)).arrayBuffer());
  }

  /** What was done to an object. @returns {Promise<{steps: object[]}>} */
  async history(object) {
    return this.json(await this.request(`history?${new URLSearchParams({ object })}`));
  }

  /** Take a label set. @returns {Promise<{labels: object[]}>} */
  async openLabels(file) {
    return this.json(await this.request(`labels?${new URLSearchParams({ name: file.name })}`, { method: "POST", body: file }));
  }

  async openPrompts(file, have) {
    const query = new URLSearchParams({ have: have.join(",") });
    const response = await this.request(`prompts?${query}`, { method: "POST", body: file });
    return decodeFrame(await response.arrayBuffer());
  }

  /** Voxels of the session's volume; `onProgress(fraction)` while they arrive. */
  async voxels(bytes, onProgress) {
    const response = await this.request("volume");
    const buffer = room(bytes);
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

  /** Send a file that is a volume by itself. */
  upload(file, onProgress) {
    return this.send("upload", file.name, file, onProgress);
  }

  /**
   * Send the files of a folder in one request: the length of a list of names and sizes (uint32, little
   * endian), the list in JSON, the files. A Blob of files is a list of references: they go from disk to
   * the server without being held here.
   */
  uploadFolder(name, files, onProgress) {
    const list = new TextEncoder().encode(JSON.stringify(files.map((file) => ({ name: file.name, size: file.size }))));
    const length = new DataView(new ArrayBuffer(4));
    length.setUint32(0, list.length, true);
    return this.send("upload-folder", name, new Blob([length, list, ...files]), onProgress);
  }

  /** XMLHttpRequest because fetch does not report what was sent. */
  send(path, name, body, onProgress) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", new URL(`${path}?${new URLSearchParams({ name })}`, BASE));
      request.setRequestHeader(HEADER, this.token);
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

  /** @returns {Promise<{refused: string}>} why no DICOM segmentation can be saved of the volume, if so */
  async segmentation() {
    return this.json(await this.request("segmentation"));
  }

  /** What an object measures. @returns {Promise<{measurement: object|null, unit: string}>} */
  async measurements(object) {
    return this.json(await this.request(`measurements?${new URLSearchParams({ object })}`));
  }

  /**
   * The surface of an object's mask: vertices in mm (RAS), three numbers each, and triangles of them.
   * @returns {Promise<{key: string, vertices: Float32Array, triangles: Uint32Array}>} key: of the mask
   */
  async surface(object) {
    const buffer = await (await this.request(`surface?${new URLSearchParams({ object })}`)).arrayBuffer();
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    const vertices = new Float32Array(buffer, 4 + length, 3 * header.vertices);
    return { key: header.key, vertices, triangles: new Uint32Array(buffer, 4 + length + vertices.byteLength, 3 * header.triangles) };
  }

  /** Compare the objects with a mask file, see medsam_app.browser.routes.compare. */
  async compare(asked) {
    return decodeFrame(await (await this.post("compare", asked)).arrayBuffer());
  }

  /** Voxels of another frame of the file that is open. @returns {Promise<{buffer: ArrayBuffer, dtype: string}>} */
  async frame(number) {
    const response = await this.request(`frame?${new URLSearchParams({ number: String(number) })}`);
    return { buffer: await response.arrayBuffer(), dtype: response.headers.get("X-Medsam-Dtype") };
  }

  /** Save what the server answers as a file of the user's; the file's name. */
  async download(path, options) {
    const response = await this.request(path, options);
    const disposition = response.headers.get("Content-Disposition") ?? "";
    return this.keep(await response.blob(), decodeURIComponent(/filename\*=UTF-8''([^;]+)/.exec(disposition)?.[1] ?? "download"));
  }

  /** Save bytes as a file of the user's; the file's name. */
  keep(blob, name) {
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

/** Memory for a volume's voxels. */
function room(bytes) {
  try {
    return new ArrayBuffer(bytes);
  } catch {
    throw new ServerError(`The browser has no room for the ${formatBytes(bytes)} of this volume; close other pages, or open a smaller one.`, 413);
  }
}

/**
 * A frame: length of the header (uint32, little endian), the header in JSON, then the masks' bits,
 * each raw or deflated, in the order of header.masks.
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
