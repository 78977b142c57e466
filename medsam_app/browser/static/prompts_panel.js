/** List of the prompts of the selected object. */

import { h, icon, iconButton, refill } from "./dom.js";

export class PromptsPanel {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.id = "prompts";
    this.title = "Prompts";
    this.list = h("div.prompts", { role: "list" });
    this.heading = h("h2", { text: "Prompts" });
    this.warning = h("div.compliance", { hidden: true, role: "status" });
    this.clear = iconButton({ icon: "trash", label: "Delete all prompts of this object", class: "plain", onclick: () => viewer.clearObject(viewer.state.selected) });
    this.choiceText = h("output.muted", { "data-id": "choice" });
    const button = (text, label, key, step) =>
      h("button.small", { type: "button", text, title: `${label}  (${key})`, "aria-label": label, "data-id": `choose-${step > 0 ? "larger" : "smaller"}`, onclick: () => viewer.chooseMask(step) });
    this.choice = h("div.edit-row", { hidden: true }, h("span", { text: "Mask" }), button("Smaller", "Smaller mask for this prompt", "[", -1), button("Larger", "Larger mask for this prompt", "]", 1), this.choiceText);
    this.element = h("div", {}, h("header", {}, this.heading, this.clear), this.warning, this.choice, this.list);
  }

  update() {
    const { viewer } = this;
    const object = viewer.selected;
    const prompts = object?.prompts ?? [];
    this.heading.textContent = this.heading.title = object ? `Prompts of ${object.name}` : "Prompts";
    this.clear.hidden = !prompts.length;
    const unmet = prompts.filter((prompt) => prompt.unmet).length;
    this.warning.hidden = !unmet;
    this.warning.replaceChildren(
      icon("warning"),
      h("span", { text: unmet === 1 ? "The mask does not honour one prompt; it is marked below." : `The mask does not honour ${unmet} prompts; they are marked below.` }),
    );
    this.choice.hidden = !object?.can_choose;
    const [number, count] = object?.choice ?? [];
    this.choiceText.textContent = number && count ? `${number} of ${count}` : "";
    const rows = prompts.map((prompt, index) => this.promptRow(prompt, index));
    const hint = h("p.hint", { text: "Click inside the object (2), outside it (3), drag a box around it (4), or paint it (5)." });
    refill(this.list, ...(rows.length ? rows.reverse() : [hint]));
  }

  promptRow(prompt, index) {
    const { viewer } = this;
    const remove = iconButton({ icon: "close", label: "Delete this prompt", class: "plain", onclick: (event) => (event.stopPropagation(), viewer.deletePrompt(index)) });
    const [kind, ...facts] = describe(prompt);
    const text = [...facts, this.slice(prompt)].filter(Boolean).join(" · ");
    return h(
      `div.prompt${prompt.unmet ? ".unmet" : ""}`,
      {
        role: "listitem", "data-index": String(index),
        onclick: () => viewer.goToPrompt(prompt),
        onmouseenter: () => viewer.setHotPrompt(index),
        onmouseleave: () => viewer.setHotPrompt(null),
      },
      h(`span.badge.${kind}`, { text: { positive: "+", negative: "−", box: "▢", mask: "◧", paint: "◍", choice: "☰", scribble: "~", "scribble.negative": "~" }[kind] }),
      h("span.what", { text, title: text }),
      prompt.unmet ? h("span.alert", { title: "The mask does not honour this prompt" }, icon("warning")) : null,
      remove,
    );
  }

  /** Name of the slice that contains the whole prompt; empty if there is none or the text already names it. */
  slice(prompt) {
    if (["point", "mask", "choice"].includes(prompt.kind) || prompt.locked) return "";
    const corners = prompt.coordinates ?? [prompt.lower, prompt.upper];
    const { axes } = this.viewer.geometry;
    const axis = [axes[2], axes[1], axes[0]].find((candidate) => corners.every((ijk) => Math.round(ijk[candidate]) === Math.round(corners[0][candidate])));
    return axis === undefined ? "" : this.viewer.edit.words({ axis, index: Math.round(corners[0][axis]) });
  }

  mark(index) {
    for (const row of this.list.children) row.classList.toggle("hot", row.dataset.index === String(index));
  }
}

function describe(prompt) {
  const list = (values) => values.map((value) => Math.round(value)).join(", ");
  if (prompt.kind === "point") return [prompt.positive ? "positive" : "negative", list(prompt.coordinates)];
  if (prompt.kind === "scribble") return [prompt.positive ? "scribble" : "scribble.negative", `Line of ${prompt.coordinates.length} corners`];
  if (prompt.kind === "paint") return ["paint", prompt.what.replace(/^./, (first) => first.toUpperCase())];
  if (prompt.kind === "mask") return ["mask", "Initial mask"];
  if (prompt.kind === "choice") return ["choice", `Mask ${prompt.number} by size`];
  const size = prompt.upper.map((up, axis) => Math.round(up - prompt.lower[axis]) + 1);
  return ["box", size.join(" × ")];
}
