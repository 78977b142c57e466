/**
 * The viewer: a scene, and what the user asks of the server.
 *
 * Looking (scrolling, zoom, pan, window) never leaves the browser; that is scene.js. Editing sends one
 * request; its answer is the new state with the masks that this page does not hold yet.
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
    // A list that was chosen from with the mouse does not take the next key, which is a hotkey.
    root.addEventListener("change", ({ target }) => target.matches("select") && !this.keyboard.last && target.blur());
  }

  /** Connect, and show the volume that the session holds or the one the server was started with. */
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

  // ---- editing: each sends one request -----------------------------------------------------------

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

  /** Delete a prompt of the selected object, wherever it stands once those before it are done. */
  deletePrompt(index) {
    const wanted = this.selected?.prompts[index];
    const object = this.state.selected;
    return this.act(() => {
      const prompts = this.state.objects.find(({ id }) => id === object)?.prompts ?? [];
      const at = [index, ...prompts.keys()].find((n) => samePrompt(prompts[n], wanted));
      return at === undefined ? null : { do: "delete_prompt", object, index: at };
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
   * Do one thing after the other: clicks made while the server thinks wait for their turn. An action that
   * depends on the state is given as a function, called when its turn has come; it may find nothing to do.
   */
  act(action, what) {
    const { volume } = this; // what is meant for one volume is not done to the next
    const run = () =>
      volume === this.volume &&
      this.watch(what, async () => {
        const now = typeof action === "function" ? action() : action;
        if (!now) return;
        const { objects } = this.state;
        this.take(await this.api.act(now, this.masks.keys(), volume.opened));
        this.sidebar.labels.tell(objects);
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
   * Open what the user picked or dropped: prompts are replayed, anything else is a volume.
   * @param {{name: string, files: File[], folder: boolean}} incoming
   */
  receive({ name, files, folder }) {
    const { upload_bytes: most, upload_files: mostFiles, extensions } = this.hello;
    const [file] = files;
    if (!file) return this.toasts.show(`There are no files in ${name}.`, "error");
    if (files.length > mostFiles) {
      return this.toasts.show(`${name} holds more than ${mostFiles} files; choose the folder of one series or study.`, "error");
    }
    if (files.reduce((sum, each) => sum + each.size, 0) > most) {
      return this.toasts.show(`${name} is larger than the ${formatBytes(most)} that this server takes.`, "error");
    }
    const ending = (end) => file.name.toLowerCase().endsWith(end);
    if (files.length === 1 && ending(".json")) return this.replay(file);
    return this.openInTurn(async () => {
      // A volume by itself goes as it is; a file that is none as well, for the server to say so.
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

  /** Open another series or frame of the same source; false where the user would rather not. */
  async reopen(changes) {
    const { source } = this.volume;
    if (this.state.objects.some((object) => object.prompts.length)) {
      const sure = await askSure(this.root, "The objects of what is open now are closed with it. Save them first if you need them.", "Open the other one");
      if (!sure) return false;
    }
    if (this.worklist.current) await this.worklist.openCase(this.worklist.current, changes);
    // The frames of another series are its own.
    else await this.open({ ...source, ...("series" in changes ? { frame: null, channel: null } : {}), ...changes });
    return true;
  }

  /** Open one volume after the other: an upload replaces the last. Clicks do not wait for that. */
  openInTurn(work) {
    this.opening = this.opening.then(() => this.guard(work));
    return this.opening;
  }

  /**
   * @param {object} source
   * @param {(source: object) => Promise<{volume: object}>} [ask] asks the server to open it
   * @param {string} [name] what it is called
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
    // All at once from here: picture, objects and masks are of one volume, whoever clicks meanwhile.
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
    this.voice.tell("volume", `${volume.name} is open`);
    this.take(frame);
    this.root.dataset.ready = "true";
    this.guard(() => this.toolbar.save.setVolume());
  }

  /** Take the server's answer: the session's state, and masks not held yet. */
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

  /** Run something; what goes wrong becomes a message. */
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
   * Run something on the server and show how far it is.
   * @param {boolean} [asked] whether the user did it: then messages about what was done before go
   */
  watch(what, work, asked = true) {
    return this.guard(async () => {
      this.progress.update(what, null, 700);
      const timer = setInterval(async () => {
        const { text, fraction } = await this.api.progress().catch(() => ({}));
        if (this.busy && text) this.progress.update(text, fraction);
      }, 900);
      const told = asked ? this.toasts.shown : [];
      try {
        const done = await work();
        for (const toast of told) toast.remove(); // they were about what was done before
        return done;
      } finally {
        clearInterval(timer);
      }
    });
  }
}

/** Whether two prompts of a state are the same one, honoured or not. */
function samePrompt(one, other) {
  const content = ({ unmet, ...rest }) => JSON.stringify(rest);
  return Boolean(one && other) && content(one) === content(other);
}

/** Build the viewer inside an element of the page. */
export async function mount(element) {
  const viewer = new Viewer(element);
  window.medsamViewer = viewer;
  return viewer.start();
}
