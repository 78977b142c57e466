/** Panels in one place, of which one is shown. */

import { h } from "./dom.js";

/**
 * @typedef {object} Panel
 * @property {string} id
 * @property {string} title what its tab says
 * @property {HTMLElement} element
 * @property {() => void} update draw what the viewer holds now; called while the panel is shown
 */
export class Tabs {
  /** @param {string} label for screen readers @param {Panel[]} panels the first one is shown @param {() => void} [onselect] another one is shown */
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

  /** Arrows go from tab to tab, as people expect of tabs. */
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
