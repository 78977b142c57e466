/** Status line: position of the pointer in voxels and millimetres, intensity and objects there. */

import { h } from "./dom.js";

export class StatusLine {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.voxel = h("span");
    this.world = h("span");
    this.value = h("span.strong");
    this.object = h("span.what");
    this.hint = h("span.hint");
    this.element = h("footer.status", { "aria-label": "Position" }, this.voxel, this.world, this.value, this.object, h("span.spacer"), this.hint);
  }

  update() {
    const { viewer } = this;
    if (!viewer.image) return;
    const byKeys = viewer.keyboard.plane;
    const { voxel, world, value, objects } = this.at((!byKeys && viewer.voxelAtPointer) || viewer.crosshair);
    this.voxel.textContent = voxel;
    this.world.textContent = world;
    this.value.textContent = value;
    this.object.replaceChildren(
      ...objects.map(({ object, colour }) => h("span", {}, h("i.dot", { style: { background: colour } }), object.name)),
    );
    this.hint.textContent = this.hint.title = byKeys ? BY_KEYS : HINTS[viewer.mode];
  }

  /** Texts about the voxel at RAS indices, and the objects there. */
  at(xyz) {
    const { viewer } = this;
    const ijk = viewer.geometry.toFile(xyz);
    const [r, a, s] = viewer.geometry.toWorld(ijk);
    const value = viewer.image.value(...xyz);
    return {
      voxel: `voxel ${ijk.join(", ")}`,
      world: `${side(r, "R", "L")}  ${side(a, "A", "P")}  ${side(s, "S", "I")} mm`,
      value: `${viewer.image.integer ? value : Number(value.toPrecision(5))}${viewer.volume.ct ? " HU" : ""}`,
      objects: viewer.visibleMasks().filter(({ mask }) => mask.has(xyz)),
    };
  }
}

const HINTS = {
  navigate: "Drag to move the crosshair · wheel scrolls · right-drag windows · ? for all keys",
  positive: "Click inside the object · Shift-click subtracts · wheel scrolls · ? for all keys",
  negative: "Click outside the object · Shift-click adds · wheel scrolls · ? for all keys",
  brush: "Paint · Shift erases · - and = change the size · wheel scrolls · ? for all keys",
  eraser: "Erase · Shift paints · - and = change the size · wheel scrolls · ? for all keys",
  scribble: "Draw a line inside the object · with Shift outside it · wheel scrolls · ? for all keys",
  lasso: "Draw around what to fill · Shift erases it · wheel scrolls · ? for all keys",
  box: "Drag a box on a slice; pull its sides on another plane to give it depth · ? for all keys",
};

const BY_KEYS = "Shift and arrows move the crosshair · Enter clicks inside, Shift Enter outside · ? for all keys";

function side(mm, positive, negative) {
  return `${mm >= 0 ? positive : negative} ${Math.abs(mm).toFixed(1)}`;
}
