/** Toasts, progress, help, and the dialogs that open a volume. */

import { formatBytes, h, icon, iconButton } from "./dom.js";
import { picked } from "./incoming.js";
import { KEYS, MOUSE } from "./keys.js";

/** Messages at the bottom of the picture. They disappear after a few seconds, errors last. */
export class Toasts {
  constructor() {
    this.element = h("div.toasts", { role: "status", "aria-live": "polite" });
  }

  get shown() {
    return [...this.element.children];
  }

  /** @param {string} message @param {"info"|"warning"|"error"} [kind] */
  show(message, kind = "info") {
    for (const shown of this.element.children) if (shown.dataset.message === message) shown.remove();
    const toast = h(
      `div.toast.${kind}`,
      { role: kind === "error" ? "alert" : null, "data-message": message },
      kind === "info" ? null : icon("warning"),
      h("span", { text: message }),
      h("button.plain", { type: "button", "aria-label": "Dismiss", onclick: () => toast.remove() }, icon("close")),
    );
    this.element.append(toast);
    while (this.element.children.length > 3) this.element.firstChild.remove();
    setTimeout(() => toast.remove(), { info: 3500, warning: 7000, error: 10_000 }[kind]);
  }
}

/** A progress bar with a text, shown for operations that take longer than a moment. */
export class Progress {
  constructor() {
    this.bar = h("div.fill");
    this.text = h("span");
    this.element = h("div.progress", { hidden: true, role: "progressbar" }, this.text, h("div.track", {}, this.bar));
    this.timer = 0;
  }

  /** Show the bar after `delay` ms unless `done` is called first. @param {number|null} fraction null while unknown */
  update(text, fraction, delay = 400) {
    this.text.textContent = text;
    this.element.setAttribute("aria-label", text);
    if (fraction === null) this.element.removeAttribute("aria-valuenow");
    else this.element.setAttribute("aria-valuenow", Math.round(100 * fraction));
    this.bar.classList.toggle("unknown", fraction === null);
    this.bar.style.width = fraction === null ? "" : `${Math.round(100 * fraction)}%`;
    if (this.element.hidden && !this.timer) {
      this.timer = setTimeout(() => (this.element.hidden = false), delay);
    }
  }

  done() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.element.hidden = true;
  }
}

/** @param {string} title @param {...Node} content @returns {HTMLDialogElement} */
export function dialog(title, ...content) {
  const element = h(
    "dialog.sheet",
    { "aria-label": title },
    h(
      "header",
      {},
      h("h2", { text: title }),
      iconButton({ icon: "close", label: "Close", class: "plain", onclick: () => element.close() }),
    ),
    ...content,
  );
  element.addEventListener("close", () => element.remove());
  element.addEventListener("click", (event) => event.target === element && element.close());
  return element;
}

export function openHelp(parent) {
  const groups = [...new Set(KEYS.map(([group]) => group))];
  const rows = (pairs) => pairs.map(([keys, text]) => h("div.row", {}, keycaps(keys), h("span", { text })));
  const columns = groups.map((group) =>
    h("section", {}, h("h3", { text: group }), ...rows(KEYS.filter(([g]) => g === group).map(([, k, t]) => [k, t]))),
  );
  const mouse = h("section.mouse", {}, h("h3", { text: "Mouse and touch" }), ...rows(MOUSE));
  const element = dialog("Keys and mouse", h("div.help", {}, ...columns, mouse));
  parent.append(element);
  element.showModal();
  return element;
}

function keycaps(text) {
  return h("span.keys", {}, ...text.split(/\s{2,}/).map((key) => h("kbd", { text: key })));
}

/**
 * Open the dialog that chooses a volume, prompt file or worklist.
 * @param {{hello: object, files: (root: number, path: string) => Promise<object>, onopen: (source: object) => void, onworklist: (root: number, path: string) => void, onfiles: (incoming: {name: string, files: File[]}) => void}} options
 */
export function openChooser(parent, options) {
  const { hello } = options;
  const picker = (id, attributes) => {
    const input = h("input", { type: "file", multiple: true, hidden: true, "data-id": id, ...attributes });
    input.addEventListener("change", () => {
      if (!input.files.length) return;
      element.close();
      options.onfiles(picked(input.files));
    });
    return input;
  };
  // No `accept` list of file extensions: DICOM slices often have none.
  const input = picker("upload", {});
  const folderInput = picker("upload-folder", { webkitdirectory: true });
  const drop = h(
    "button.drop",
    { type: "button", onclick: () => input.click() },
    icon("up"),
    h("strong", { text: "Choose files, or drop files or a folder on the page" }),
    h("span", { text: `NIfTI, NRRD, MetaImage, DICOM slices or a zip of them, a prompt file; up to ${formatBytes(hello.upload_bytes)}` }),
  );
  const folder = h(
    "button.wide",
    { type: "button", "data-id": "choose-folder", onclick: () => folderInput.click() },
    icon("open"),
    h("span", { text: "Choose a folder of DICOM slices" }),
  );
  const sample = h(
    "button.wide",
    { type: "button", "data-id": "sample", onclick: () => (element.close(), options.onopen({ source: "sample" })) },
    icon("target"),
    h("span", { text: "Sample: a torso phantom with several organs" }),
  );
  const folders = hello.roots.length ? folderList(hello.roots, options, () => element.close()) : null;
  const element = dialog("Open a volume", drop, folder, sample, input, folderInput, folders);
  parent.append(element);
  element.showModal();
  return element;
}

/** File browser for the folders that the server was started with. */
function folderList(roots, options, close) {
  const list = h("div.files", { role: "list" });
  const crumb = h("div.crumb");
  const current = { root: 0, path: "" };
  const worklist = options.onworklist && h("button.small", {
    type: "button", "data-id": "open-worklist", title: "Go through all volumes of this folder, case by case",
    onclick: () => (close(), options.onworklist(current.root, current.path)),
  }, icon("list"), h("span", { text: "Open as a worklist" }));
  const show = async (root, path) => {
    let answer;
    try {
      answer = await options.files(root, path);
    } catch (error) {
      crumb.textContent = error.message;
      return;
    }
    Object.assign(current, { root, path });
    crumb.textContent = crumb.title = [roots[root], ...path.split("/").filter(Boolean)].join(" / ");
    const rows = answer.entries.map((entry) => {
      const entryPath = [path, entry.name].filter(Boolean).join("/");
      const open = () => {
        if (entry.kind === "folder") return show(root, entryPath);
        close();
        return options.onopen({ source: "folder", root, path: entryPath });
      };
      return h(
        "button.file",
        { type: "button", role: "listitem", title: entry.name, onclick: open },
        icon(entry.kind === "file" ? "file" : "open"),
        h("span", { text: entry.name }),
        h("small", { text: entry.kind === "file" ? formatBytes(entry.size) : entry.kind === "dicom" ? "DICOM" : "" }),
      );
    });
    if (path) {
      const parent = path.split("/").slice(0, -1).join("/");
      rows.unshift(h("button.file", { type: "button", onclick: () => show(root, parent) }, icon("undo"), h("span", { text: "Up" })));
    }
    list.replaceChildren(...rows);
    if (!rows.length) list.textContent = "No volumes here.";
  };
  show(0, "");
  const tabs = roots.length > 1 && h("div.tabs", {}, ...roots.map((name, n) => h("button", { type: "button", text: name, onclick: () => show(n, "") })));
  return h("section.folder", {}, h("h3", { text: "On the server" }), tabs, h("div.here", {}, crumb, worklist), list);
}

/**
 * Open the dialog that chooses a mask file to compare with.
 * @param {{hello: object, files: (root: number, path: string) => Promise<object>, onopen: (source: object) => void, onfile: (file: File) => void}} options
 */
export function openMaskChooser(parent, options) {
  const input = h("input", { type: "file", hidden: true, "data-id": "compare-file" });
  input.addEventListener("change", () => input.files.length && (element.close(), options.onfile(input.files[0])));
  const drop = h("button.drop", { type: "button", onclick: () => input.click() }, icon("up"), h("strong", { text: "Choose a mask file" }), h("span", { text: "NIfTI, NRRD or MetaImage, on the grid of the image that is open" }));
  const folders = options.hello.roots.length ? folderList(options.hello.roots, options, () => element.close()) : null;
  const element = dialog("Compare with a mask", drop, input, folders);
  parent.append(element);
  element.showModal();
  return element;
}

/** Ask for confirmation. @returns {Promise<boolean>} */
export function askSure(parent, message, yes) {
  return new Promise((resolve) => {
    let sure = false;
    const act = h("button.primary", { type: "button", "data-id": "sure", text: yes, onclick: () => ((sure = true), element.close()) });
    const element = dialog("Are you sure?", h("p", { text: message }), h("div.answers", {}, h("button.tool", { type: "button", text: "Cancel", onclick: () => element.close() }), act));
    element.addEventListener("close", () => resolve(sure));
    parent.append(element);
    element.showModal();
  });
}

/** Questions for the dialog; the server's own message is also written for the command line. */
const QUESTIONS = {
  series: (count) => `There are ${count} series here. Which one is to be opened? The others can be chosen later, beside the volume's name.`,
  frame: (count) => `There are ${count} frames here. Which one is to be segmented? All of them can be looked at.`,
  channel: (count) => `There are ${count} channels here. Which one is to be opened?`,
};

/** Text of a choice. The server describes series; frames and channels are counted from 1, like slices. */
export function choiceText(option, value, text, count) {
  return option === "series" ? text : `${option} ${Number(value) + 1} of ${count}`;
}

/** Ask which series, frame or channel of the volume `name` to open. @returns {Promise<string|null>} */
export function askChoice(parent, message, choice, name) {
  return new Promise((resolve) => {
    let chosen = null;
    const rows = choice.choices.map(([value, text]) =>
      h("button.file", { type: "button", onclick: () => ((chosen = value), element.close()) }, icon("file"), h("span", { text: choiceText(choice.option, value, text, choice.choices.length) })),
    );
    const element = dialog(`Which ${choice.option}?`, name && h("p.asked", { text: name, title: name }), h("p", { text: QUESTIONS[choice.option]?.(choice.choices.length) ?? message }), h("div.files", {}, ...rows));
    element.addEventListener("close", () => resolve(chosen));
    parent.append(element);
    element.showModal();
  });
}
