/** Playback of the frames of a multi-frame file, drawn under the objects of the frame that is open. */

import { h, iconButton } from "./dom.js";
import { VolumeImage } from "./image.js";

/** Duration of a frame in milliseconds, and size of the frame cache in bytes. */
const PAUSE = 140;
const CACHE_BYTES = 768e6;

export class Cine {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.images = new Map();
    this.playing = false;
    this.count = 1;
    this.objectFrame = 0;
    this.shown = 0;
    this.play = iconButton({ icon: "play", label: "Play the frames", id: "cine-play", class: "plain", onclick: () => this.toggle() });
    this.slider = h("input", { type: "range", min: "0", step: "1", "aria-label": "Frame", "data-id": "cine-frame", oninput: () => this.go(Number(this.slider.value)) });
    this.text = h("span", { role: "status" });
    this.take = h("button.small", { type: "button", "data-id": "cine-take", text: "Segment this frame", onclick: () => this.viewer.reopen({ frame: this.shown }) });
    this.element = h("div.cine", { hidden: true, role: "group", "aria-label": "Frames" }, this.play, this.slider, this.text, this.take);
  }

  /** Whether the frame shown is not the one that the objects belong to. */
  get onOtherFrame() {
    return this.shown !== this.objectFrame;
  }

  /** Start over with a newly opened volume. */
  reset() {
    this.stop();
    this.images.clear();
    const { volume, image } = this.viewer;
    this.count = volume.parts?.frame?.length ?? 1;
    this.objectFrame = this.shown = volume.source?.frame ?? 0;
    this.images.set(this.objectFrame, image);
    this.element.hidden = this.count < 2;
    this.slider.max = String(this.count - 1);
    this.update();
  }

  update() {
    this.slider.value = String(this.shown);
    const where = `Frame ${this.shown + 1} of ${this.count}`;
    this.text.textContent = this.onOtherFrame ? `${where} · the objects belong to frame ${this.objectFrame + 1}` : where;
    this.take.hidden = !this.onOtherFrame;
  }

  step(by) {
    if (this.count > 1) return this.go((this.shown + by + this.count) % this.count);
    return this.viewer.toasts.show("This file holds one frame only.");
  }

  /** Show a frame, loading it if necessary. If several requests overlap, only the last one is shown. */
  async go(number) {
    this.requested = number;
    const { volume } = this.viewer;
    const image = await this.load(number);
    if (!image || this.requested !== number || this.viewer.volume !== volume) return false;
    const { low, high } = this.viewer.image;
    image.setWindow(low, high);
    this.shown = number;
    this.viewer.image = image;
    this.update();
    this.viewer.redraw();
    this.viewer.status.update();
    return true;
  }

  load(number) {
    const cached = this.images.get(number);
    if (cached) return Promise.resolve(cached);
    const { volume } = this.viewer;
    return this.viewer.guard(async () => {
      this.viewer.progress.update(`Loading frame ${number + 1}`, null);
      const { buffer, dtype } = await this.viewer.api.frame(number);
      const image = new VolumeImage({ ...volume, dtype }, buffer);
      if (this.viewer.volume === volume) this.images.set(number, image);
      this.trim(number);
      return image;
    });
  }

  trim(latest) {
    let bytes = 0;
    for (const image of this.images.values()) bytes += image.data.byteLength;
    for (const [number, image] of this.images) {
      if (bytes <= CACHE_BYTES) return;
      if (number === latest || number === this.objectFrame || number === this.shown) continue;
      this.images.delete(number);
      bytes -= image.data.byteLength;
    }
  }

  toggle() {
    if (this.playing) return this.stop();
    this.playing = true;
    this.updateButton();
    return this.run();
  }

  async run() {
    while (this.playing) {
      const start = performance.now();
      if (!(await this.go((this.shown + 1) % this.count))) return this.stop();
      await new Promise((done) => setTimeout(done, Math.max(20, PAUSE - (performance.now() - start))));
    }
    return undefined;
  }

  stop() {
    this.playing = false;
    this.updateButton();
  }

  updateButton() {
    const button = iconButton({ icon: this.playing ? "stop" : "play", label: this.playing ? "Stop" : "Play the frames", id: "cine-play", class: "plain", onclick: () => this.toggle() });
    const focused = this.play.matches(":focus-visible");
    this.play.replaceWith(button);
    this.play = button;
    if (focused) button.focus();
  }

  /** Refuse a prompt: prompts belong to the frame that is open. */
  refuse() {
    this.viewer.toasts.show(`The objects belong to frame ${this.objectFrame + 1}; go back to it to edit them, or take this frame instead.`, "warning");
  }
}
