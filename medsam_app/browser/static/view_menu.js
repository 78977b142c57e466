/** Menu for projections in the planes and for the 3D view of the surfaces. */

import { h } from "./dom.js";
import { Menu } from "./menu.js";
import { KINDS } from "./projection.js";

export class ViewMenu extends Menu {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    super({ icon: "cube", label: "Surfaces and projections", id: "view-menu", items: () => this.choices() });
    this.viewer = viewer;
  }

  choices() {
    const { surface, projection } = this.viewer;
    const slab = h("input.number", {
      type: "text", inputmode: "decimal", value: String(projection.slab), "data-id": "slab", "aria-label": "Thickness of the slab in mm",
      onchange: () => projection.setSlab(Number(slab.value)),
    });
    return [
      { label: "Surfaces of the objects", key: "T", id: "view-surface", checked: surface.on, onclick: () => surface.toggle() },
      { label: "Slices among the surfaces", id: "view-slices", checked: surface.planesShown, disabled: !surface.on, onclick: () => this.toggleSlices() },
      ...KINDS.map(([kind, name], n) => ({ label: name, key: n ? undefined : "Y", id: `view-${kind}`, begins: n === 0, checked: projection.kind === kind, onclick: () => projection.choose(kind) })),
      { element: h("label", {}, "Slab of ", slab, " mm") },
    ];
  }

  toggleSlices() {
    const { surface } = this.viewer;
    surface.planesShown = !surface.planesShown;
    surface.requestDraw();
  }
}
