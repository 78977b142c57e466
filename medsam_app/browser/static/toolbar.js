/** Toolbar: opening, modes, undo, window, masks, saving. */

import { h, iconButton } from "./dom.js";
import { SaveMenu } from "./save_menu.js";
import { ViewMenu } from "./view_menu.js";

const MODES = [
  ["navigate", "navigate", "Navigate", "1"],
  ["positive", "positive", "Add", "2"],
  ["negative", "negative", "Subtract", "3"],
  ["box", "box", "Box", "4"],
  ["brush", "brush", "", "5"],
  ["eraser", "eraser", "", "6"],
  ["scribble", "scribble", "", "7"],
  ["lasso", "lasso", "", "8"],
];

export class Toolbar {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.modes = MODES.map(([mode, icon, text, key]) =>
      iconButton({
        icon,
        text,
        key,
        id: `mode-${mode}`,
        label: { navigate: "Navigate: move the crosshair", positive: "Add: click inside the object", negative: "Subtract: click outside the object", box: "Box: drag around the object", brush: "Brush: paint the mask", eraser: "Eraser: take away from the mask", scribble: "Scribble: draw a line inside the object", lasso: "Lasso: draw around what to fill" }[mode],
        class: `segment.${mode}`,
        onclick: () => viewer.setMode(mode),
      }),
    );
    this.undo = iconButton({ icon: "undo", label: "Undo", key: "Z", id: "undo", onclick: () => viewer.undo() });
    this.redo = iconButton({ icon: "redo", label: "Redo", key: "Shift Z", id: "redo", onclick: () => viewer.redo() });
    this.preset = h("select", {
      title: "Window preset  (W)",
      "aria-label": "Window preset",
      onchange: () => viewer.applyPreset(Number(this.preset.value)),
    });
    this.level = this.number("Level: centre of the window");
    this.width = this.number("Width of the window");
    this.opacity = h("input", {
      type: "range", min: "0", max: "100", step: "5", title: "Opacity of the masks  (O)", "aria-label": "Opacity of the masks",
      oninput: () => viewer.setOpacity(Number(this.opacity.value) / 100),
    });
    this.outline = iconButton({ icon: "outline", label: "Outlines", key: "L", onclick: () => viewer.toggle("outline") });
    this.hide = iconButton({ icon: "eye", label: "Show masks", key: "H", onclick: () => viewer.toggle("masksHidden") });
    this.fine = iconButton({ icon: "fine", label: "Fine outlines of large objects: slower", key: "E", id: "fine", onclick: () => viewer.toggleFine() });
    this.heat = iconButton({ icon: "heat", label: "Where the model is in doubt", key: "D", id: "heat", onclick: () => viewer.heat.toggle() });
    this.lines = iconButton({ icon: "target", label: "Crosshair lines", key: "R", onclick: () => viewer.toggle("crosshair") });
    this.save = new SaveMenu(viewer);
    this.viewMenu = new ViewMenu(viewer);
    this.element = h(
      "header.toolbar",
      { role: "toolbar", "aria-label": "Tools" },
      iconButton({ icon: "open", text: "Open", label: "Open a volume, a prompt file or a worklist", id: "open", onclick: () => viewer.chooseVolume() }),
      h("div.segments", { role: "group", "aria-label": "Mode" }, ...this.modes),
      h("div.group", {}, this.undo, this.redo, this.fine),
      h("div.group.window", {}, this.preset, h("label", { text: "L" }, this.level), h("label", { text: "W" }, this.width)),
      h("div.group", {}, this.hide, this.outline, this.heat, this.opacity),
      h("div.group", {}, this.lines, iconButton({ icon: "fit", label: "Fit the planes", key: "F", onclick: () => viewer.fit() }), this.viewMenu.element),
      h("div.spacer"),
      h("div.group.last", {}, this.save.element),
      iconButton({ icon: "theme", label: "Light or dark", key: "G", id: "theme", onclick: () => viewer.nextTheme() }),
      iconButton({ icon: "help", label: "Keys and mouse", key: "?", id: "help", onclick: () => viewer.toggleHelp() }),
    );
  }

  number(label) {
    const input = h("input.number", { type: "text", inputmode: "numeric", title: label, "aria-label": label });
    const apply = () => {
      const level = Number(this.level.value);
      const width = Number(this.width.value);
      if (Number.isFinite(level) && width > 0) this.viewer.setWindow(level, width);
      else this.updateWindow();
    };
    input.addEventListener("change", apply);
    input.addEventListener("keydown", (event) => event.key === "Enter" && input.blur());
    return input;
  }

  setVolume() {
    const options = this.viewer.presets.map(([name], index) => h("option", { value: String(index), text: name }));
    this.preset.replaceChildren(...options, h("option", { value: "", text: "Custom", hidden: true }));
  }

  updateMode() {
    this.modes.forEach((button, index) => button.setAttribute("aria-pressed", String(MODES[index][0] === this.viewer.mode)));
    this.updateView();
  }

  updateWindow() {
    const { low, high } = this.viewer.image;
    const digits = high - low < 10 ? 3 : 0;
    const level = (low + high) / 2;
    this.level.value = level.toFixed(digits);
    this.width.value = (high - low).toFixed(digits);
    const same = this.viewer.presets.findIndex(
      ([, centre, width]) => Math.abs(centre - level) < 1e-3 && Math.abs(width - (high - low)) < 1e-3,
    );
    this.preset.value = same < 0 ? "" : String(same);
  }

  updateView() {
    const { view } = this.viewer;
    this.opacity.value = String(Math.round(view.opacity * 100));
    this.outline.setAttribute("aria-pressed", String(view.outline));
    this.hide.setAttribute("aria-pressed", String(!view.masksHidden));
    this.lines.setAttribute("aria-pressed", String(view.crosshair));
  }

  updateState() {
    const { state } = this.viewer;
    this.undo.disabled = !state.can_undo;
    this.redo.disabled = !state.can_redo;
    this.undo.title = state.undo_text ? `Undo: ${state.undo_text}  (Z)` : "Undo  (Z)";
    this.redo.title = state.redo_text ? `Redo: ${state.redo_text}  (Shift Z)` : "Redo  (Shift Z)";
    this.fine.setAttribute("aria-pressed", String(state.refine));
    this.heat.setAttribute("aria-pressed", String(this.viewer.heat.on));
    this.save.update();
  }
}
