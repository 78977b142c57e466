/** Tools for the mask of the selected object: brush, morphology in mm, locks, merging with other objects. */

import { formatMl, h, iconButton, refill } from "./dom.js";

const TOOLS = [
  ["fill holes", "Fill holes", "Fill what the mask encloses"],
  ["keep largest", "Keep largest", "Keep the largest connected part"],
  ["smooth", "Smooth", "Smooth the outline by the millimetres given"],
  ["grow", "Grow", "Grow by the millimetres given"],
  ["shrink", "Shrink", "Shrink by the millimetres given"],
  ["interpolate", "Interpolate", "Make missing slices of the plane that was used last; between locked slices where there are two or more"],
];

export class EditPanel {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.id = "edit";
    this.title = "Edit";
    this.size = h("input", { type: "range", min: "0.5", max: "40", step: "0.5", "aria-label": "Radius of the brush in millimetres", title: "Radius of the brush  (− and =)", "data-id": "brush-size", oninput: () => viewer.edit.setRadius(Number(this.size.value)) });
    this.sizeText = h("output.muted");
    this.ball = h("input", { type: "checkbox", "data-id": "brush-ball", onchange: () => viewer.edit.setBall(this.ball.checked) });
    this.mm = h("input.number", { type: "number", min: "0.1", max: "100", step: "0.5", value: "2", "aria-label": "Millimetres for smooth, grow and shrink", "data-id": "tool-mm" });
    this.scope = h("select", { "aria-label": "What the tools change", "data-id": "tool-scope" }, h("option", { value: "", text: "Whole mask" }), h("option", { value: "slice", text: "This slice" }));
    this.tools = TOOLS.map(([tool, text, label]) =>
      h("button.small", { type: "button", text, title: label, "aria-label": label, "data-id": `tool-${tool.replace(" ", "-")}`, onclick: () => this.use(tool) }),
    );
    this.lock = h("button.small", { type: "button", "data-id": "lock-slice", onclick: () => viewer.edit.toggleLock() });
    this.locks = h("div.locks", { role: "list", "aria-label": "Locked slices" });
    this.other = h("select", { "aria-label": "The other object", "data-id": "other-object" });
    this.merge = h("button.small", { type: "button", text: "Merge", title: "Add the other object's mask to this one, and delete it", "data-id": "merge", onclick: () => viewer.edit.combine(this.other.value, "merge") });
    this.subtract = h("button.small", { type: "button", text: "Subtract", title: "Take the other object's mask away from this one", "data-id": "subtract", onclick: () => viewer.edit.combine(this.other.value, "subtract") });
    this.overlap = h("input", { type: "checkbox", "data-id": "may-overlap", onchange: () => viewer.changeObject(viewer.state.selected, { may_overlap: this.overlap.checked }) });
    this.givenUp = h("p.hint");
    this.brush = h("div.edit-row", {}, h("span", { text: "Brush" }), this.size, this.sizeText, h("label", { title: "A ball in 3D instead of a disc on the slice" }, this.ball, "3D"));
    this.rest = h(
      "div.edit-rest",
      {},
      h("div.edit-row", {}, h("span", { text: "Tools" }), this.scope, this.mm, h("span.muted", { text: "mm" })),
      h("div.edit-tools", {}, ...this.tools),
      h("div.edit-row", {}, h("span", { text: "Locks" }), this.lock),
      this.locks,
      h("div.edit-row.other", {}, h("span", { text: "With" }), this.other, this.merge, this.subtract),
      h("div.edit-row", {}, h("label", { title: "Objects that may not overlap share no voxel: the later one of the list has it" }, this.overlap, "May overlap others")),
      this.givenUp,
    );
    this.empty = h("p.hint", { text: "Paint with the brush (5), erase (6), scribble (7) or draw a lasso (8); Shift does the opposite. Drag a point to move it." });
    this.element = h("div.edit-panel", {}, this.brush, this.rest, this.empty);
  }

  use(tool) {
    const mm = Number(this.mm.value);
    if (!(mm > 0)) return this.viewer.toasts.show("Give a number of millimetres above 0.", "warning");
    return this.viewer.edit.tool(tool, mm, this.scope.value === "slice");
  }

  update() {
    const { viewer } = this;
    const { edit, selected, state } = viewer;
    this.size.value = String(edit.radius);
    this.sizeText.textContent = `${edit.radius} mm`;
    this.ball.checked = edit.ball;
    this.rest.hidden = !selected;
    if (!selected || !viewer.geometry) return;
    for (const button of [...this.tools, this.subtract, this.merge]) button.disabled = !selected.mask;
    this.updateSlice();
    refill(this.locks, ...selected.locks.map((lock) => this.lockRow(lock)));
    const others = state.objects.filter((object) => object !== selected);
    const chosen = this.other.value;
    this.other.replaceChildren(...others.map((object) => h("option", { value: object.id, text: object.name })));
    if (others.some((object) => object.id === chosen)) this.other.value = chosen;
    for (const node of [this.other, this.merge, this.subtract]) node.disabled ||= !others.length;
    this.other.disabled = !others.length;
    this.overlap.checked = selected.may_overlap;
    this.givenUp.hidden = !selected.given_up_ml;
    this.givenUp.textContent = `${formatMl(selected.given_up_ml)} lie in objects that this one may not overlap, and belong to them.`;
  }

  /** Update the lock button after the crosshair or the active plane has changed. */
  updateSlice() {
    const { edit, geometry } = this.viewer;
    if (!geometry) return;
    const slice = edit.slice();
    const text = `${edit.isLocked(slice) ? "Unlock" : "Lock"} ${edit.words(slice)}`;
    if (this.lock.textContent !== text) this.lock.textContent = text;
    this.lock.title = `${text}: nothing changes a locked slice  (K)`;
  }

  lockRow(lock) {
    const { edit } = this.viewer;
    const words = edit.words(lock);
    return h(
      "div.edit-row",
      { role: "listitem" },
      h("button.plain-text", { type: "button", text: words, title: `Go to ${words}`, onclick: () => edit.goToSlice(lock) }),
      iconButton({ icon: "close", label: `Unlock ${words}`, class: "plain", onclick: () => edit.lock(lock, false) }),
    );
  }
}
