/** Frames of a file that holds several: shown one after the other, under the objects of the one that is open. */

import { h, iconButton } from "./dom.js";
import { VolumeImage } from "./image.js";

/** Milliseconds a frame is shown, and bytes of frames kept. */
const PAUSE = 140;
const CACHE_BYTES = 768e6;

export class Cine {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.images = new Map();
    this.playing = false;
    this.count = 1;
    this.own = 0;
    this.shown = 0;
    this.play = iconButton({ icon: "play", label: "Play the frames", id: "cine-play", class: "plain", onclick: () => this.toggle() });
    this.slider = h("input", { type: "range", min: "0", step: "1", "aria-label": "Frame", "data-id": "cine-frame", oninput: () => this.go(Number(this.slider.value)) });
    this.text = h("span", { role: "status" });
    this.take = h("button.small", { type: "button", "data-id": "cine-take", text: "Segment this frame", onclick: () => this.viewer.reopen({ frame: this.shown }) });
    this.element = h("div.cine", { hidden: true, role: "group", "aria-label": "Frames" }, this.play, this.slider, this.text, this.take);
  }

  /** Whether another frame than that of the objects is shown. */
  get elsewhere() {
    return this.shown !== this.own;
  }

  /** Another volume is open. */
  reset() {
    this.stop();
    this.images.clear();
    const { volume, image } = this.viewer;
    this.count = volume.parts?.frame?.length ?? 1;
    this.own = this.shown = volume.source?.frame ?? 0;
    this.images.set(this.own, image);
    this.element.hidden = this.count < 2;
    this.slider.max = String(this.count - 1);
    this.update();
  }

  update() {
    this.slider.value = String(this.shown);
    const where = `Frame ${this.shown + 1} of ${this.count}`;
    this.text.textContent = this.elsewhere ? `${where} · the objects belong to frame ${this.own + 1}` : where;
    this.take.hidden = !this.elsewhere;
  }

  step(by) {
    if (this.count > 1) return this.go((this.shown + by + this.count) % this.count);
    return this.viewer.toasts.show("This file holds one frame only.");
  }

  /** Show a frame, loaded first if need be; of several asked for at once, the last one. */
  async go(number) {
    this.wanted = number;
    const { volume } = this.viewer;
    const image = await this.load(number);
    if (!image || this.wanted !== number || this.viewer.volume !== volume) return false;
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
    const known = this.images.get(number);
    if (known) return Promise.resolve(known);
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
      if (number === latest || number === this.own || number === this.shown) continue;
      this.images.delete(number);
      bytes -= image.data.byteLength;
    }
  }

  toggle() {
    if (this.playing) return this.stop();
    this.playing = true;
    this.mark();
    return this.run();
  }

  async run() {
    while (this.playing) {
      const began = performance.now();
      if (!(await this.go((this.shown + 1) % this.count))) return this.stop();
      await new Promise((done) => setTimeout(done, Math.max(20, PAUSE - (performance.now() - began))));
    }
    return undefined;
  }

  stop() {
    this.playing = false;
    this.mark();
  }

  mark() {
    const fresh = iconButton({ icon: this.playing ? "stop" : "play", label: this.playing ? "Stop" : "Play the frames", id: "cine-play", class: "plain", onclick: () => this.toggle() });
    const focused = this.play.matches(":focus-visible");
    this.play.replaceWith(fresh);
    this.play = fresh;
    if (focused) fresh.focus();
  }

  /** Prompts belong to the frame that is open. */
  refuse() {
    this.viewer.toasts.show(`The objects belong to frame ${this.own + 1}; go back to it to edit them, or take this frame instead.`, "warning");
  }
}
