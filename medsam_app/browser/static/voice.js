/** Announcements for screen readers: position of the crosshair, and changes of the selected object. */

import { formatMl, h } from "./dom.js";

/** Delay in milliseconds: only the position where the crosshair comes to rest is announced. */
const DELAY = 250;

export class Voice {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.pending = {};
    this.announced = "";
    this.element = h("p.heard", { "aria-live": "polite", "data-id": "heard" });
  }

  /** Announce the slice, voxel and intensity at the crosshair. */
  place() {
    const { viewer } = this;
    const plane = viewer.planes[viewer.active];
    const { voxel, value, objects } = viewer.status.at(viewer.crosshair);
    const slice = `${plane.axes.name} ${plane.index + 1} of ${plane.sliceCount}`;
    this.announce("place", [slice, voxel, value, ...objects.map(({ object }) => object.name)].join(", "));
  }

  /** Announce the selected object if it is another one or has changed. */
  object() {
    const { selected } = this.viewer;
    const state = selected && `${selected.id} ${selected.mask} ${selected.prompts.length}`;
    if (state === this.announced) return;
    this.announced = state;
    if (!selected) return this.announce("object", "no objects");
    const unmet = selected.prompts.filter((prompt) => prompt.unmet).length;
    const facts = [selected.name, selected.mask ? formatMl(selected.volume_ml) : "no mask", unmet && `${unmet} prompts not honoured`];
    return this.announce("object", facts.filter(Boolean).join(", "));
  }

  /** Queue an announcement; it replaces an earlier one of the same kind. */
  announce(kind, text) {
    this.pending[kind] = text;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.element.textContent = Object.values(this.pending).join("; ");
      this.pending = {};
    }, DELAY);
  }
}
