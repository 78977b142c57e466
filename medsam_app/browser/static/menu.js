/** A button that opens a menu of commands and choices. */

import { h, iconButton } from "./dom.js";

/**
 * @typedef {object} Item
 * @property {string} label
 * @property {string} [id] its data-id
 * @property {string} [key] its keyboard shortcut
 * @property {boolean} [disabled]
 * @property {string} [why] why it is disabled, in a sentence
 * @property {boolean} [checked] whether a choice is on; undefined for a command
 * @property {boolean} [begins] whether it has a separator above it
 * @property {() => void} [onclick]
 * @property {HTMLElement} [element] content to show in place of a button
 */
export class Menu {
  /** @param {{icon: string, label: string, text?: string, id: string, class?: string, items: () => Item[]}} options `items` is called each time the menu opens */
  constructor(options) {
    this.items = options.items;
    this.list = h("div.menu-list", { role: "menu", "aria-label": options.label, hidden: true, onkeydown: (event) => this.step(event) });
    this.button = iconButton({ ...options, onclick: () => (this.list.hidden ? this.open() : this.close()) });
    this.button.setAttribute("aria-haspopup", "menu");
    this.element = h("div.menu", {}, this.button, this.list);
    document.addEventListener("pointerdown", (event) => this.element.contains(event.target) || this.close(false));
    this.close(false);
  }

  open() {
    this.list.replaceChildren(...this.items().map((item) => this.row(item)));
    this.list.hidden = false;
    this.button.setAttribute("aria-expanded", "true");
    // Shift the list left if it would cross the window's edge.
    this.list.style.left = "0";
    const over = this.list.getBoundingClientRect().right - (window.innerWidth - 8);
    this.list.style.left = `${Math.min(0, -over)}px`;
    this.buttons[0]?.focus();
  }

  close(focus = true) {
    if (!this.list.hidden && focus) this.button.focus();
    this.list.hidden = true;
    this.button.setAttribute("aria-expanded", "false");
  }

  get buttons() {
    return [...this.list.querySelectorAll("button:not(:disabled), input")];
  }

  row(item) {
    const begins = item.begins ? ".begins" : "";
    if (item.element) return h(`div.menu-field${begins}`, { role: "none" }, item.element);
    const choice = item.checked !== undefined;
    return h(
      `button.menu-item${begins}`,
      {
        type: "button", role: choice ? "menuitemcheckbox" : "menuitem", "data-id": item.id, disabled: Boolean(item.disabled),
        "aria-checked": choice ? String(item.checked) : null,
        onclick: () => (this.close(), item.onclick()),
      },
      h("span.tick", { text: item.checked ? "✓" : "", "aria-hidden": "true" }),
      h("span.label", {}, item.label, item.why && h("small", { text: item.why })),
      item.key ? h("kbd", { text: item.key }) : null,
    );
  }

  step(event) {
    if (event.key === "Escape") {
      event.stopPropagation();
      return this.close();
    }
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    event.stopPropagation(); // keep the page's key bindings from handling it
    if (!by) return undefined;
    event.preventDefault();
    const { buttons } = this;
    const at = buttons.indexOf(document.activeElement);
    return buttons[(at + by + buttons.length) % buttons.length]?.focus();
  }
}
