/** Edit history of the selected object. A click on a step restores this object, and no other, to that step. */

import { h, refill } from "./dom.js";

export class HistoryPanel {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.id = "history";
    this.title = "History";
    this.list = h("div.steps", { role: "list" });
    this.heading = h("h2", { text: "History" });
    this.element = h("div", {}, h("header", {}, this.heading), this.list);
  }

  async update() {
    const { viewer } = this;
    const object = viewer.selected;
    this.heading.textContent = this.heading.title = object ? `History of ${object.name}` : "History";
    if (!object) return this.list.replaceChildren(h("p.hint", { text: "No object is selected." }));
    this.requestedState = viewer.state;
    const { steps } = await viewer.api.history(object.id).catch(() => ({ steps: [] }));
    if (this.requestedState !== viewer.state) return undefined; // a newer request is pending
    const latest = steps.findLastIndex((step) => step.now);
    const rows = steps.map((step, index) => this.row(step, index === latest));
    return refill(this.list, ...rows.reverse());
  }

  /** Text of a change without the object's name, which is in the heading. */
  words(change) {
    const ending = ` ${this.viewer.selected?.name}`;
    if (!change.endsWith(ending)) return change;
    const words = change.slice(0, -ending.length).replace(/ (to|of|on)$/, "");
    return words === "add" ? "added" : words;
  }

  row({ number, change, time }, now) {
    const at = time ? new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false }) : "";
    const words = this.words(change);
    const go = () => now || this.viewer.edit.goBack(number);
    return h(
      "div.step",
      { role: "listitem" },
      h("button.plain-text", { type: "button", "aria-current": now ? "step" : null, title: `${words}: ${now ? "as it is now" : "take this object back to here"}`, onclick: go }, h("span.what", { text: words }), h("span.muted", { text: at })),
    );
  }
}
