/** A label set: the predefined objects of a task, offered as a list. */

import { h } from "./dom.js";

const OPEN = "\u0000open";

export class Labels {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.labels = [];
    this.file = h("input", { type: "file", accept: ".csv,.json", hidden: true, "data-id": "label-file", onchange: () => this.open() });
    this.select = h("select.labels", { "aria-label": "Add an object of the label set", title: "Add an object of the label set", "data-id": "labels", onchange: () => this.choose() });
    this.element = h("span.labels-box", {}, this.select, this.file);
    this.update();
  }

  take(labels) {
    this.labels = labels;
    this.update();
  }

  update() {
    const used = new Set(this.viewer.state?.objects.map((object) => object.name));
    const free = this.labels.filter((label) => !used.has(label.name));
    const title = this.labels.length ? (free.length ? "Add…" : "All added") : "Labels…";
    this.select.replaceChildren(
      h("option", { value: "", text: title, selected: true }),
      ...free.map((label) => h("option", { value: label.name, text: label.name })),
      h("option", { value: OPEN, text: "Open a label file…" }),
    );
  }

  /** Show which label a newly added object received. @param {object[]} before the objects before it was added */
  reportAdded(before) {
    const known = new Set(before.map((object) => object.id));
    const added = this.viewer.state.objects.filter((object) => !known.has(object.id));
    if (!this.labels.length || added.length !== 1) return;
    const [{ name, label }] = added;
    const inSet = this.labels.some((entry) => entry.name === name && entry.label === label);
    this.viewer.toasts.show(inSet ? `This object is ${name}, label ${label}, of the label set.` : `All labels of the set are in use; this object is ${name}.`);
  }

  choose() {
    const { value } = this.select;
    this.select.value = "";
    if (value === OPEN) this.file.click();
    else if (value) this.viewer.act({ do: "add_object", ...this.labels.find((label) => label.name === value) }, "Adding an object");
  }

  open() {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return undefined;
    return this.viewer.guard(async () => {
      this.take((await this.viewer.api.openLabels(file)).labels);
      this.viewer.toasts.show(`Opened ${file.name}: ${this.labels.length} labels`);
    });
  }
}
