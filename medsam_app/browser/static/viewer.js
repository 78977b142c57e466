/**
 * The viewer: a scene with all requests to the server.
 *
 * Viewing (scrolling, zoom, pan, window) needs no request; see scene.js. An edit sends one request. The response
 * is the new state with the masks that this page does not have yet.
 */

import { Api } from "./api.js";
import { askChoice, askSure, openChooser } from "./dialogs.js";
import { formatBytes } from "./dom.js";
import { Geometry } from "./geometry.js";
import { VolumeImage } from "./image.js";
import { dropped, isDicom } from "./incoming.js";
import { Mask } from "./masks.js";
import { Scene } from "./scene.js";
import { Theme } from "./theme.js";
import { Worklist } from "./worklist.js";

export class Viewer extends Scene {
  /** @param {HTMLElement} root */
  constructor(root) {
    super(root);
    this.theme = new Theme(root);
    this.api = new Api();
    this.busy = 0;
    this.queue = Promise.resolve();
    this.opening = Promise.resolve();
    this.worklist = new Worklist(this);
    root.append(this.worklist.element);
    this.listenToDrops();
    // After a choice with the mouse, move focus away from the list, so that the next key is a shortcut again.
    root.addEventListener("change", ({ target }) => target.matches("select") && !this.keyboard.last && target.blur());
  }

  /** Connect, and show the volume of the session or the one that the server was started with. */
  async start() {
    await this.guard(async () => {
      this.hello = await this.api.connect();
      this.sidebar.setModel(this.hello);
      this.sidebar.labels.take(this.hello.labels);
      if (await this.worklist.resume(this.hello)) return;
      if (this.hello.volume) await this.show(this.hello);
      else await this.openNow(this.hello.start, undefined, this.hello.name);
    });
    return this;
  }

  // ---- editing: one request per method -----------------------------------------------------------

  clickPoint(xyz, positive) {
    if (!this.geometry.contains(xyz)) return this.outside();
    const voxel = this.geometry.nearest(xyz);
    this.setCrosshair(voxel);
    this.pending.push({ xyz: voxel, positive, pending: true });
    this.redrawOverlays();
    const prompt = { kind: "point", coordinates: this.geometry.toFile(voxel), positive };
    return this.act({ do: "add_prompt", prompt }, "Segmenting").finally(() => {
      this.pending.shift();
      this.redrawOverlays();
    });
  }

  commitBox(box, index) {
    const prompt = { kind: "box", lower: this.geometry.toFile(box.lower), upper: this.geometry.toFile(box.upper) };
    if (index < 0) return this.act({ do: "add_prompt", prompt }, "Segmenting");
    return this.act({ do: "replace_prompt", object: this.state.selected, index, prompt }, "Segmenting");
  }

  /** Delete a prompt of the selected object, even if earlier actions in the queue change its index. */
  deletePrompt(index) {
    const prompt = this.selected?.prompts[index];
    const object = this.state.selected;
    return this.act(() => {
      const prompts = this.state.objects.find(({ id }) => id === object)?.prompts ?? [];
      const at = [index, ...prompts.keys()].find((n) => samePrompt(prompts[n], prompt));
      return at === undefined ? null : { do: "delete_prompt", object, index: at };
    }, "Segmenting");
  }

  /** Choose the next larger (1) or smaller (-1) mask for the first prompt of the selected object. */
  chooseMask(step) {
    return this.act(() => {
      const { selected } = this;
      if (!selected?.can_choose) this.toasts.show("Other masks can be chosen right after the first click or box of an object.");
      return selected?.can_choose ? { do: "choose", object: selected.id, step } : null;
    }, "Segmenting");
  }

  deletePromptAtHand() {
    if (this.hotPrompt !== null) return this.deletePrompt(this.hotPrompt);
    return this.act(() => {
      const count = this.selected?.prompts.length ?? 0;
      if (!count) this.toasts.show("This object has no prompts to delete.");
      return count ? { do: "delete_prompt", object: this.state.selected, index: count - 1 } : null;
    }, "Segmenting");
  }

  undo() {
    return this.act(() => (this.state.can_undo ? { do: "undo" } : void this.toasts.show("Nothing to undo.")), "Undoing");
  }

  redo() {
    return this.act(() => (this.state.can_redo ? { do: "redo" } : void this.toasts.show("Nothing to redo.")), "Redoing");
  }

  nextTheme() {
    this.toasts.show(this.theme.next());
  }

  toggleFine() {
    return this.act(() => ({ do: "refine", on: !this.state.refine }), "Drawing outlines");
  }

  addObject() {
    return this.act({ do: "add_object" }, "Adding an object");
  }

  selectObject(id) {
    if (id !== this.state.selected) return this.act({ do: "select", object: id }, "Selecting");
  }

  stepObject(step) {
    const { objects } = this.state;
    const at = objects.findIndex((object) => object.id === this.state.selected);
    if (objects.length > 1) this.selectObject(objects[(at + step + objects.length) % objects.length].id);
  }

  changeObject(id, changes) {
    return this.act({ do: "change_object", object: id, ...changes }, "Changing");
  }

  deleteObject(id) {
    return this.act({ do: "delete_object", object: id }, "Deleting");
  }

  clearObject(id) {
    return this.act({ do: "clear", object: id }, "Clearing");
  }

  /**
   * Queue an action: actions run one at a time, in order. An action that depends on the state is passed as a
   * function, which is called when its turn comes and may return null to do nothing.
   */
  act(action, what) {
    const { volume } = this; // do not apply the action to a volume opened later
    const run = () =>
      volume === this.volume &&
      this.watch(what, async () => {
        const request = typeof action === "function" ? action() : action;
        if (!request) return;
        const { objects } = this.state;
        this.take(await this.api.act(request, this.masks.keys(), volume.opened));
        this.sidebar.labels.reportAdded(objects);
      });
    this.queue = this.queue.then(run);
    return this.queue;
  }

  // ---- opening -----------------------------------------------------------------------------------

  chooseVolume() {
    openChooser(this.root, {
      hello: this.hello,
      files: (root, path) => this.api.files(root, path),
      onopen: (source) => this.open(source),
      onworklist: (root, path) => this.worklist.openFolder(root, path),
      onfiles: (files) => this.receive(files),
    });
  }

  listenToDrops() {
    const mark = (on) => this.root.classList.toggle("dropping", on);
    this.root.addEventListener("dragover", (event) => {
      event.preventDefault();
      mark(event.dataTransfer.types.includes("Files"));
    });
    this.root.addEventListener("dragleave", (event) => this.root.contains(event.relatedTarget) || mark(false));
    this.root.addEventListener("drop", (event) => {
      event.preventDefault();
      mark(false);
      if (!this.hello || !event.dataTransfer.types.includes("Files")) return;
      document.querySelector("dialog[open]")?.close();
      const looking = dropped(event.dataTransfer, this.hello.upload_files);
      this.guard(async () => {
        this.progress.update("Looking through the folder", null);
        await this.receive(await looking);
      });
    });
  }

  /**
   * Open files that the user picked or dropped: a prompt file is replayed, anything else is a volume.
   * @param {{name: string, files: File[], folder: boolean}} incoming
   */
  receive({ name, files, folder }) {
    const { upload_bytes: maxBytes, upload_files: maxFiles, extensions } = this.hello;
    const [file] = files;
    if (!file) return this.toasts.show(`There are no files in ${name}.`, "error");
    if (files.length > maxFiles) {
      return this.toasts.show(`${name} holds more than ${maxFiles} files; choose the folder of one series or study.`, "error");
    }
    if (files.reduce((sum, { size }) => sum + size, 0) > maxBytes) {
      return this.toasts.show(`${name} is larger than the ${formatBytes(maxBytes)} that this server takes.`, "error");
    }
    const ending = (end) => file.name.toLowerCase().endsWith(end);
    if (files.length === 1 && ending(".json")) return this.replay(file);
    return this.openInTurn(async () => {
      // Send a single-file volume unchanged. Also send a file of unknown type, so that the server reports the error.
      const alone = files.length === 1 && (extensions.some(ending) || !(folder || (await isDicom(file))));
      const what = alone ? `Uploading ${name}` : `Uploading ${name} (${files.length} files)`;
      const onProgress = (fraction) => this.progress.update(what, fraction);
      onProgress(0);
      const sent = alone ? await this.api.upload(file, onProgress) : await this.api.uploadFolder(name, files, onProgress);
      await this.openNow({ source: "upload", upload: sent.upload }, undefined, name);
    });
  }

  replay(file) {
    return this.watch("Replaying the prompts", async () => {
      this.take(await this.api.openPrompts(file, this.masks.keys()));
      this.toasts.show(`Replayed ${file.name}`);
    });
  }

  open(source) {
    return this.openInTurn(() => this.openNow(source));
  }

  /** Open another series or frame of the same source. @returns {Promise<boolean>} false if the user cancelled */
  async reopen(changes) {
    const { source } = this.volume;
    if (this.state.objects.some((object) => object.prompts.length)) {
      const sure = await askSure(this.root, "The objects of what is open now are closed with it. Save them first if you need them.", "Open the other one");
      if (!sure) return false;
    }
    if (this.worklist.current) await this.worklist.openCase(this.worklist.current, changes);
    // Frame and channel numbers do not carry over to another series.
    else await this.open({ ...source, ...("series" in changes ? { frame: null, channel: null } : {}), ...changes });
    return true;
  }

  /** Queue the opening of a volume, since an upload replaces the previous one. Clicks do not wait for it. */
  openInTurn(work) {
    this.opening = this.opening.then(() => this.guard(work));
    return this.opening;
  }

  /**
   * @param {object} source
   * @param {(source: object) => Promise<{volume: object}>} [ask] requests the server to open it
   * @param {string} [name] name to show
   */
  async openNow(source, ask = (chosen) => this.api.open(chosen), name = source.name ?? source.path?.split("/").pop() ?? this.volume?.name ?? "") {
    for (;;) {
      try {
        this.progress.update("Reading the volume", null);
        await this.show(await ask(source));
        return;
      } catch (error) {
        if (!error.choice) throw error;
        this.progress.done();
        const value = await askChoice(this.root, error.message, error.choice, name);
        if (value === null) return;
        source = { ...source, [error.choice.option]: value };
      }
    }
  }

  async show({ volume, frame }) {
    const buffer = await this.api.voxels(volume.bytes, (fraction) => this.progress.update("Loading the volume", fraction));
    // No `await` after this one: picture, objects and masks must belong to one volume at all times.
    frame ??= await this.api.act({ do: "look" }, [], volume.opened);
    this.masks.clear();
    this.volume = volume;
    this.api.opened = volume.opened;
    this.image = new VolumeImage(volume, buffer);
    this.geometry = new Geometry(volume);
    this.view.hidden.clear();
    this.draft = null;
    this.crosshair = this.geometry.shape.map((count) => Math.floor(count / 2));
    for (const plane of Object.values(this.planes)) plane.reset();
    this.toolbar.setVolume();
    this.cine.reset();
    this.surface.reset();
    this.sidebar.compare.clear(false);
    this.applyPreset(0);
    this.voice.announce("volume", `${volume.name} is open`);
    this.take(frame);
    this.root.dataset.ready = "true";
    this.guard(() => this.toolbar.save.setVolume());
  }

  /** Apply a response of the server: the session's state, and new masks. */
  take(frame) {
    for (const header of frame.masks) this.masks.put(new Mask(header, header.bits));
    this.state = frame.state;
    this.masks.trim(new Set(frame.state.objects.map((object) => object.mask)));
    this.hotPrompt = null;
    for (const message of frame.messages ?? []) this.toasts.show(message, "warning");
    this.toolbar.updateState();
    this.sidebar.update();
    this.status.update();
    this.voice.object();
    this.worklist.follow(frame.state.case);
    this.heat.follow();
    this.surface.update();
    this.redraw();
  }

  // ---- errors and progress -----------------------------------------------------------------------

  /** Run an operation and show its error, if any, as a message. */
  async guard(work) {
    this.busy += 1;
    this.root.classList.add("busy");
    try {
      return await work();
    } catch (error) {
      if (error.status === undefined) console.error(error);
      if (this.worklist.lost(error)) return undefined;
      this.toasts.show(error.message, "error");
      return undefined;
    } finally {
      this.busy -= 1;
      if (!this.busy) {
        this.root.classList.remove("busy");
        this.progress.done();
      }
    }
  }

  /**
   * Run an operation on the server and show its progress.
   * @param {boolean} [byUser] whether the user started it; then messages of earlier operations are removed
   */
  watch(what, work, byUser = true) {
    return this.guard(async () => {
      this.progress.update(what, null, 700);
      const timer = setInterval(async () => {
        const { text, fraction } = await this.api.progress().catch(() => ({}));
        if (this.busy && text) this.progress.update(text, fraction);
      }, 900);
      const earlier = byUser ? this.toasts.shown : [];
      try {
        const result = await work();
        for (const toast of earlier) toast.remove();
        return result;
      } finally {
        clearInterval(timer);
      }
    });
  }
}

/** Whether two prompts are equal, apart from whether the mask honours them. */
function samePrompt(one, other) {
  const content = ({ unmet, ...rest }) => JSON.stringify(rest);
  return Boolean(one && other) && content(one) === content(other);
}

/** Create and start the viewer inside an element of the page. */
export async function mount(element) {
  const viewer = new Viewer(element);
  window.medsamViewer = viewer;
  return viewer.start();
}
