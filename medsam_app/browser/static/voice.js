/** What screen readers hear: where the crosshair is, and what became of the selected object. */

import { formatMl, h } from "./dom.js";

/** Where the crosshair came to rest is heard, not where it passed. */
const REST = 250;

export class Voice {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.news = {};
    this.told = "";
    this.element = h("p.heard", { "aria-live": "polite", "data-id": "heard" });
  }

  place() {
    const { viewer } = this;
    const plane = viewer.planes[viewer.active];
    const { voxel, value, objects } = viewer.status.at(viewer.crosshair);
    const slice = `${plane.axes.name} ${plane.index + 1} of ${plane.sliceCount}`;
    this.tell("place", [slice, voxel, value, ...objects.map(({ object }) => object.name)].join(", "));
  }

  /** The selected object, where it is another one or has changed. */
  object() {
    const { selected } = this.viewer;
    const now = selected && `${selected.id} ${selected.mask} ${selected.prompts.length}`;
    if (now === this.told) return;
    this.told = now;
    if (!selected) return this.tell("object", "no objects");
    const unmet = selected.prompts.filter((prompt) => prompt.unmet).length;
    const facts = [selected.name, selected.mask ? formatMl(selected.volume_ml) : "no mask", unmet && `${unmet} prompts not honoured`];
    return this.tell("object", facts.filter(Boolean).join(", "));
  }

  /** Of each kind of news the latest is heard. */
  tell(kind, text) {
    this.news[kind] = text;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.element.textContent = Object.values(this.news).join("; ");
      this.news = {};
    }, REST);
  }
}
