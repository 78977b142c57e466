/** Right column: the volume, its objects, and panels about the selected object. */

import { ComparePanel } from "./compare_panel.js";
import { choiceText } from "./dialogs.js";
import { byHand, formatMl, h, icon, iconButton, refill } from "./dom.js";
import { MeasurePanel } from "./measure_panel.js";
import { EditPanel } from "./edit_panel.js";
import { HistoryPanel } from "./history_panel.js";
import { Labels } from "./labels.js";
import { PromptsPanel } from "./prompts_panel.js";
import { Tabs } from "./tabs.js";

export class Sidebar {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.volume = h("section.volume");
    this.objects = h("div.objects", { role: "listbox", "aria-label": "Objects" });
    this.prompts = new PromptsPanel(viewer);
    this.edit = new EditPanel(viewer);
    this.labels = new Labels(viewer);
    this.measure = new MeasurePanel(viewer);
    this.compare = new ComparePanel(viewer);
    const panels = [this.prompts, this.edit, new HistoryPanel(viewer), this.measure, this.compare];
    this.tabs = new Tabs("About the selected object", panels, () => viewer.redraw());
    this.model = h("p.model");
    this.element = h(
      "aside.sidebar",
      { "aria-label": "Objects and prompts" },
      this.volume,
      h(
        "section.panel",
        {},
        h("header", {}, h("h2", { text: "Objects" }), this.labels.element, iconButton({ icon: "plus", text: "New", label: "New object", key: "N", id: "add-object", class: "small", onclick: () => viewer.addObject() })),
        this.objects,
      ),
      this.tabs.element,
      h("footer", {}, this.model, h("p", { text: "For research. Not a medical device." })),
    );
  }

  setModel(hello) {
    this.model.textContent = this.model.title = hello.model;
  }

  update() {
    this.updateVolume();
    this.updateObjects();
    this.labels.update();
    this.tabs.update();
  }

  updateVolume() {
    const { volume } = this.viewer;
    if (!volume) return;
    const size = volume.file_shape.join(" × ");
    const spacing = volume.file_spacing.map((mm) => Number(mm.toFixed(2))).join(" × ");
    this.volume.replaceChildren(
      h("h1", { text: volume.name, title: volume.name }),
      h("p", { text: [volume.modality, `${size} voxels`].filter(Boolean).join(" · ") }),
      h("p", { text: `${spacing} mm · ${volume.orientation}` }),
      ...this.invitation(),
      ...Object.entries(volume.parts ?? {}).map(([option, choices]) => this.partChoice(option, choices)),
    );
  }

  /** Button to open a volume, shown while the sample is open on a server with folders. */
  invitation() {
    const { volume, hello } = this.viewer;
    if (volume.source.source !== "sample" || !hello.roots.length) return [];
    const where = hello.roots.length === 1 ? hello.roots[0] : "the server's folders";
    const text = `Open from ${where}`;
    return [h("button.primary.invitation", { type: "button", "data-id": "open-root", title: `This is the sample. ${text}: a volume, or all of them as a worklist`, onclick: () => this.viewer.chooseVolume() }, icon("open"), h("span", { text }))];
  }

  /** Selector of the series, frame or channel among those of the same source. */
  partChoice(option, choices) {
    const chosen = String(this.viewer.volume.source[option]);
    const rows = choices.map(([value, text]) => h("option", { value, text: choiceText(option, value, text, choices.length), selected: value === chosen }));
    const list = h("select", { "aria-label": `Which ${option}`, "data-id": `choose-${option}`, title: choices.find(([value]) => value === chosen)?.[1] }, ...rows);
    list.addEventListener("change", async () => (await this.viewer.reopen({ [option]: list.value })) || (list.value = chosen));
    return h("label.part", {}, h("span.muted", { text: option }), list);
  }

  updateObjects() {
    const { state } = this.viewer;
    if (this.objects.contains(document.activeElement) && document.activeElement.dataset.editing) return;
    refill(this.objects, ...state.objects.map((object) => this.objectRow(object)));
    const selected = this.objects.querySelector("[aria-selected=true]");
    selected?.scrollIntoView({ block: "nearest" });
  }

  objectRow(object) {
    const { viewer } = this;
    const selected = object.id === viewer.state.selected;
    const hidden = viewer.view.hidden.has(object.id);
    const stop = (event) => event.stopPropagation();
    const colour = h("input.colour", {
      type: "color", value: object.colour, title: "Colour", "aria-label": `Colour of ${object.name}`,
      onclick: stop,
      onchange: (event) => viewer.changeObject(object.id, { colour: event.target.value }),
    });
    const name = this.editable(object, "name", `Name of ${object.name}`, (value) => viewer.changeObject(object.id, { name: value }));
    const label = this.editable(object, "label", "Label value in the saved mask", (value) => {
      const number = Number(value);
      if (Number.isInteger(number) && number > 0) return viewer.changeObject(object.id, { label: number });
      return viewer.toasts.show(`A label value is a whole number from 1 up; got '${value}'.`, "warning");
    });
    const facts = object.mask
      ? [h("span", { text: formatMl(object.volume_ml), title: "Volume" }), byHand(object) ? h("span", { text: "by hand", title: "No model was asked about this mask" }) : scoreBar(object.score)]
      : [h("span.muted", { text: object.prompts.length ? "No mask" : "No prompts yet" })];
    const unmet = object.prompts.filter((prompt) => prompt.unmet).length;
    return h(
      "div.object",
      {
        role: "option", "aria-selected": String(selected), "data-object": object.id, tabIndex: 0,
        onclick: () => viewer.selectObject(object.id),
        onkeydown: (event) => event.key === "Enter" && event.target === event.currentTarget && viewer.selectObject(object.id),
      },
      h("div.line", {}, colour, name, unmet ? h("span.alert", { title: `${unmet} prompt(s) not honoured` }, icon("warning")) : null),
      h("div.line.facts", {}, h("span.tag", {}, label), ...facts,
        h("span.ends", {},
          iconButton({ icon: hidden ? "hidden" : "eye", label: hidden ? "Show" : "Hide", class: "plain", onclick: (event) => (stop(event), viewer.toggleObject(object.id)) }),
          iconButton({ icon: "trash", label: `Delete ${object.name}`, class: "plain", onclick: (event) => (stop(event), viewer.deleteObject(object.id)) }))),
    );
  }

  /** Input for a field of an object that looks like text until it is edited. */
  editable(object, kind, label, commit) {
    const value = String(object[kind]);
    const input = h(`input.editable.${kind}`, { type: "text", value, "aria-label": label, title: label, maxLength: kind === "label" ? 5 : 80, autocomplete: "off", spellcheck: false });
    input.addEventListener("focus", () => (input.dataset.editing = "true"));
    input.addEventListener("click", (event) => input.closest("[aria-selected=true]") && event.stopPropagation());
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") input.value = value;
      if (event.key === "Enter" || event.key === "Escape") input.blur();
    });
    input.addEventListener("blur", () => {
      delete input.dataset.editing;
      const text = input.value.trim();
      const done = text && text !== value ? commit(text) : undefined;
      // Show the stored value again, so that a refused one does not remain.
      Promise.resolve(done).then(() => (input.value = String(this.viewer.state.objects.find(({ id }) => id === object.id)?.[kind] ?? value)));
    });
    return input;
  }
}

/** Expected Dice below which a mask is called unsure. */
const UNSURE = 0.6;

function scoreBar(score) {
  const percent = Math.round(100 * score);
  const unsure = score < UNSURE;
  const title = `Expected overlap (Dice) with the right mask: ${percent}%${unsure ? ". Look at it closely; click where it is wrong" : ""}`;
  return h(`span.score${unsure ? ".unsure" : ""}`, { title }, h("span.bar", {}, h("i", { style: { width: `${percent}%` } })), h("span", { text: unsure ? "unsure" : `${percent}%` }));
}
