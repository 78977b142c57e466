/** Light or dark: as the system has it, unless somebody said otherwise here; remembered. */

const KEPT = "medsam-theme";
const CHOICES = ["system", "light", "dark"];
const WORDS = { system: "as the system", light: "light", dark: "dark" };

export class Theme {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.system = window.matchMedia("(prefers-color-scheme: light)");
    this.system.addEventListener("change", () => this.apply());
    this.apply();
  }

  /** "system", "light" or "dark". */
  get choice() {
    try {
      const kept = localStorage.getItem(KEPT);
      return CHOICES.includes(kept) ? kept : "system";
    } catch {
      return this.chosen ?? "system"; // nothing may be stored
    }
  }

  /** Colours: the next choice. @returns {string} what is shown now, in words */
  next() {
    const choice = CHOICES[(CHOICES.indexOf(this.choice) + 1) % CHOICES.length];
    this.chosen = choice;
    try {
      localStorage.setItem(KEPT, choice);
    } catch {
      // It holds until the page is left.
    }
    this.apply();
    return `Colours: ${WORDS[choice]}`;
  }

  apply() {
    const light = this.choice === "system" ? this.system.matches : this.choice === "light";
    this.root.dataset.theme = light ? "light" : "dark";
  }
}
