/** Comparison of the objects with a mask file on the same grid: scores, and the differences on the planes. */

import { openMaskChooser } from "./dialogs.js";
import { formatMl, h, iconButton } from "./dom.js";
import { Mask } from "./masks.js";

/**
 * RGBA colours: violet, mint, and white for voxels in both masks. They differ clearly from one another and from
 * the object colours for all types of colour vision.
 */
const COLOURS = { ours: [80, 0, 255, 200], theirs: [128, 255, 192, 190], both: [255, 255, 255, 60] };
const NAMES = { ours: "Only here", theirs: "Only in the file", both: "In both" };

export class ComparePanel {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.id = "compare";
    this.title = "Compare";
    this.masks = new Map();
    this.answer = null;
    this.known = null;
    this.drawn = new Map();
    this.choose = h("button.small", { type: "button", "data-id": "compare-choose", text: "Choose a mask file", onclick: () => this.chooseFile() });
    this.forget = iconButton({ icon: "close", label: "Compare no longer", class: "plain", onclick: () => this.clear() });
    this.tolerance = h("input.number", { type: "text", inputmode: "decimal", "aria-label": "Tolerance of the surface Dice in mm", title: "How far surfaces may be apart and still agree", onchange: () => this.ask() });
    this.overlay = h("input", { type: "checkbox", checked: true, "data-id": "compare-overlay", onchange: () => viewer.redraw() });
    this.name = h("p.muted");
    this.rows = h("div.compared", { "aria-live": "polite" });
    const legend = Object.entries(COLOURS).map(([what, colour]) => h("span", {}, h("i.dot", { style: { background: `rgb(${colour.slice(0, 3).join(" ")})` } }), NAMES[what]));
    this.options = h(
      "div.compare-options",
      { hidden: true },
      h("label", {}, this.overlay, "Show the difference on the planes"),
      h("div.legend", {}, ...legend),
      h("label", {}, "Surfaces agree within ", this.tolerance, " mm"),
    );
    this.element = h("div", {}, h("header", {}, h("h2", { text: "Compare with a mask" }), this.forget), this.choose, this.name, this.options, this.rows);
    viewer.overlays.push(this);
    this.clear(false);
  }

  /** Whether the planes show the difference instead of the masks. */
  get showing() {
    return Boolean(this.answer) && this.overlay.checked && this.viewer.sidebar.tabs.shown === this;
  }

  clear(notifyServer = true) {
    this.answer = this.known = null;
    this.masks.clear();
    this.drawn.clear();
    this.forget.hidden = this.options.hidden = true;
    this.name.textContent = "A file on the grid of this image: objects are compared with the labels of their value, and the selected object with a file of one label.";
    this.rows.replaceChildren();
    if (!notifyServer) return undefined;
    this.viewer.redraw();
    return this.viewer.guard(() => this.viewer.api.request("compare", { method: "DELETE" }));
  }

  chooseFile() {
    const { viewer } = this;
    openMaskChooser(viewer.root, {
      hello: viewer.hello,
      files: (root, path) => viewer.api.files(root, path),
      onopen: ({ root, path }) => this.ask({ source: "folder", root, path }),
      onfile: (file) =>
        viewer.guard(async () => {
          const sent = await viewer.api.upload(file, (fraction) => viewer.progress.update(`Uploading ${file.name}`, fraction));
          await this.ask({ source: "upload", upload: sent.upload });
        }),
    });
  }

  /** Key of the state that a comparison is valid for. */
  stateKey() {
    const { objects, selected } = this.viewer.state;
    return JSON.stringify([objects.map(({ id, label, name, mask }) => [id, label, name, mask]), selected]);
  }

  update() {
    if (this.answer && this.stateKey() !== this.known) this.ask();
  }

  /** @param {object} [other] source of a new mask file; without it, the previous one is compared again */
  ask(other) {
    const tolerance = Number(this.tolerance.value);
    if (this.tolerance.value && !(tolerance > 0)) return this.viewer.toasts.show("A tolerance is a number of millimetres above 0.", "warning");
    const key = this.stateKey();
    this.known = key;
    return this.viewer.watch("Comparing", async () => {
      const request = { other: other ?? null, tolerance_mm: this.tolerance.value && !other ? tolerance : null, have: [...this.masks.keys()] };
      const answer = await this.viewer.api.compare(request);
      for (const header of answer.masks) this.masks.set(header.key, new Mask(header, header.bits));
      if (key === this.stateKey() || other) this.show(answer);
    }, Boolean(other));
  }

  show(answer) {
    this.answer = answer;
    this.drawn.clear();
    this.forget.hidden = this.options.hidden = false;
    this.name.textContent = answer.name;
    this.tolerance.value = String(Number(answer.tolerance_mm.toPrecision(4)));
    this.rows.replaceChildren(...answer.rows.map((row) => this.row(row)));
    this.viewer.redraw();
  }

  row(row) {
    const object = this.viewer.state.objects.find(({ id }) => id === row.object);
    const volumes = `${row.ours_ml === null ? "no mask" : formatMl(row.ours_ml)} here, ${row.theirs_ml === null ? "none" : formatMl(row.theirs_ml)} in the file`;
    const percent = (value) => value.toFixed(3);
    const hd95 = row.hd95_mm === null ? "not defined" : `${row.hd95_mm.toFixed(2)} mm`;
    const facts = row.dice === null ? [] : [["Dice", percent(row.dice)], ["Surface Dice", percent(row.surface_dice)], ["HD95", hd95]];
    return h(
      "div.comparison",
      { "data-label": row.label === null ? null : String(row.label) },
      h("strong", {}, object && h("i.dot", { style: { background: object.colour } }), row.label === null || row.name === `label ${row.label}` ? row.name : `${row.name} and label ${row.label}`),
      ...facts.map(([name, text]) => h("div.fact", {}, h("span.muted", { text: name }), h("span", { text }))),
      h("div.fact", {}, h("span.muted", { text: "Volume" }), h("span", { text: volumes })),
    );
  }

  /** Draw the difference in place of the masks: voxels in one of them only, and in both. */
  drawUnder(context, plane) {
    if (!this.showing) return;
    const { sx, sy, left, top } = plane.transform;
    const { shape } = this.viewer.geometry;
    for (const row of this.answer.rows) {
      if (this.viewer.view.hidden.has(row.object)) continue;
      const masks = [row.mask && this.viewer.masks.get(row.mask), row.theirs && this.masks.get(row.theirs)];
      const id = `${plane.plane}:${plane.index}:${row.mask}:${row.theirs}`;
      if (!this.drawn.has(id)) {
        if (this.drawn.size > 24) this.drawn.clear();
        this.drawn.set(id, difference(masks, plane, shape));
      }
      const picture = this.drawn.get(id);
      if (!picture) continue;
      context.imageSmoothingEnabled = false;
      context.drawImage(picture.canvas, left + picture.x * sx, top + picture.y * sy, picture.canvas.width * sx, picture.canvas.height * sy);
    }
  }
}

/** Difference of two masks on one slice as a coloured canvas, with its offset in the picture; null if both are empty there. */
function difference(masks, plane, shape) {
  const slices = masks.map((mask) => {
    const slice = mask && mask.slice(plane.plane, plane.index);
    return slice && { ...slice, offset: mask.offset(plane.plane, shape) };
  });
  const present = slices.filter(Boolean);
  if (!present.length) return null;
  const x = Math.min(...present.map(({ offset }) => offset[0]));
  const y = Math.min(...present.map(({ offset }) => offset[1]));
  const width = Math.max(...present.map((slice) => slice.offset[0] + slice.width)) - x;
  const height = Math.max(...present.map((slice) => slice.offset[1] + slice.height)) - y;
  if (!width || !height) return null;
  const kinds = new Uint8Array(width * height);
  slices.forEach((slice, n) => {
    if (!slice) return;
    for (let row = 0; row < slice.height; row++) {
      const start = (row + slice.offset[1] - y) * width + slice.offset[0] - x;
      for (let column = 0; column < slice.width; column++) if (slice.pixels[row * slice.width + column]) kinds[start + column] |= 1 << n;
    }
  });
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const colours = [null, COLOURS.ours, COLOURS.theirs, COLOURS.both];
  kinds.forEach((kind, pixel) => kind && image.data.set(colours[kind], 4 * pixel));
  context.putImageData(image, 0, 0);
  return { canvas, x, y };
}
