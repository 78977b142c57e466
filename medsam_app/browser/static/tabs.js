/** Tabs: one of several panels is shown at a time. */

import { h } from "./dom.js";

/**
 * @typedef {object} Panel
 * @property {string} id
 * @property {string} title text of its tab
 * @property {HTMLElement} element
 * @property {() => void} update draw the viewer's current state; called while the panel is shown
 */
export class Tabs {
  /** @param {string} label for screen readers @param {Panel[]} panels the first one is shown at first @param {() => void} [onselect] called when another one is shown */
  constructor(label, panels, onselect = () => {}) {
    this.onselect = onselect;
    this.panels = panels;
    this.buttons = panels.map((panel) =>
      h("button", {
        type: "button", role: "tab", id: `tab-${panel.id}`, "data-id": `tab-${panel.id}`, "aria-controls": `panel-${panel.id}`, text: panel.title,
        onclick: () => this.select(panel.id),
      }),
    );
    const list = h("div.tabs", { role: "tablist", "aria-label": label, hidden: panels.length < 2, onkeydown: (event) => this.step(event) }, ...this.buttons);
    for (const panel of panels) {
      Object.assign(panel.element, { id: `panel-${panel.id}`, role: "tabpanel" });
      panel.element.setAttribute("aria-labelledby", `tab-${panel.id}`);
    }
    this.element = h("section.panel.grow", {}, list, ...panels.map((panel) => panel.element));
    this.shown = panels[0];
    this.select(this.shown.id, false);
  }

  /** Show a panel. */
  select(id, draw = true) {
    this.shown = this.panels.find((panel) => panel.id === id);
    this.panels.forEach((panel, n) => {
      const chosen = panel === this.shown;
      panel.element.hidden = !chosen;
      this.buttons[n].setAttribute("aria-selected", String(chosen));
      this.buttons[n].tabIndex = chosen ? 0 : -1;
    });
    if (!draw) return;
    this.update();
    this.onselect();
  }

  update() {
    this.shown.update();
  }

  /** Move between tabs with the arrow keys. */
  step(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const next = this.panels[(this.panels.indexOf(this.shown) + by + this.panels.length) % this.panels.length];
    this.select(next.id);
    this.buttons[this.panels.indexOf(next)].focus();
  }
}
