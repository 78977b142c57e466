/** Light or dark theme: follows the system unless the user has chosen one; the choice is stored. */

const STORAGE_KEY = "medsam-theme";
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
      const stored = localStorage.getItem(STORAGE_KEY);
      return CHOICES.includes(stored) ? stored : "system";
    } catch {
      return this.chosen ?? "system"; // storage is not allowed
    }
  }

  /** Switch to the next choice. @returns {string} a message with the new choice */
  next() {
    const choice = CHOICES[(CHOICES.indexOf(this.choice) + 1) % CHOICES.length];
    this.chosen = choice;
    try {
      localStorage.setItem(STORAGE_KEY, choice);
    } catch {
      // Without storage the choice lasts until the page is closed.
    }
    this.apply();
    return `Colours: ${WORDS[choice]}`;
  }

  apply() {
    const light = this.choice === "system" ? this.system.matches : this.choice === "light";
    this.root.dataset.theme = light ? "light" : "dark";
  }
}
