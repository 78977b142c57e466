/** Measurements of the selected object, requested from the server only while the panel is shown. */

import { formatMl, h, iconButton, refill } from "./dom.js";
import { PLANES } from "./geometry.js";

const LINE = "#ffe66d";
const ACROSS = "#8fe3ff";
/** Size of the plot in CSS pixels. */
const WIDTH = 260;
const HEIGHT = 90;

export class MeasurePanel {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.id = "measure";
    this.title = "Measure";
    this.heading = h("h2", { text: "Measurements" });
    this.save = iconButton({ icon: "save", label: "Save the measurements of all objects as CSV", class: "plain", id: "csv", onclick: () => viewer.toolbar.save.save("measurements.csv") });
    this.body = h("div.measures", { "aria-live": "polite" });
    this.plane = h("select", { "aria-label": "Plane of the areas", onchange: () => this.drawPlot() }, ...Object.entries(PLANES).map(([id, { name }]) => h("option", { value: id, text: name })));
    this.plot = h("canvas.plot", { role: "img", "aria-label": "Area of the object in each slice", onclick: (event) => this.goToArea(event) });
    this.peak = h("span.muted");
    this.areas = h("div.areas", { hidden: true }, h("header", {}, h("h2", { text: "Area by slice" }), this.plane), this.plot, this.peak);
    this.element = h("div", {}, h("header", {}, this.heading, this.save), this.body, this.areas);
    this.known = null;
    this.measurement = null;
    viewer.overlays.push(this);
  }

  get shown() {
    return this.viewer.sidebar.tabs.shown === this;
  }

  maskKey() {
    const object = this.viewer.selected;
    return object?.mask ? `${object.id}:${object.mask}` : null;
  }

  update() {
    const object = this.viewer.selected;
    this.heading.textContent = this.heading.title = object ? `Measurements of ${object.name}` : "Measurements";
    this.save.disabled = !this.viewer.state.objects.some(({ mask }) => mask);
    const key = this.maskKey();
    if (key === this.known && key) return this.drawPlot();
    const another = this.known?.split(":")[0] !== object?.id;
    this.known = key;
    if (!key) return this.show(null);
    if (another) this.show(null, "", "Measuring…");
    return this.viewer.guard(async () => {
      const answer = await this.viewer.api.measurements(object.id).catch((error) => {
        if (key === this.known) this.known = null; // the next update requests it again
        throw error;
      });
      if (key === this.maskKey()) this.show(answer.measurement, answer.unit);
    });
  }

  /** @param {object|null} measurement a medsam_app.measure.measurements.Measurement @param {string} [hint] text to show without a measurement */
  show(measurement, unit = "", hint = "An object is measured once it has a mask.") {
    this.measurement = measurement?.voxels ? measurement : null;
    this.areas.hidden = !this.measurement;
    this.viewer.redrawOverlays();
    if (!this.measurement) {
      this.body.replaceChildren(h("p.hint", { text: hint }));
      return;
    }
    const value = (number) => `${Number(number.toPrecision(4))}`;
    const suffix = unit ? ` ${unit}` : "";
    const facts = [
      ["Volume", `${formatMl(measurement.volume_ml)}  (${measurement.voxels.toLocaleString("en")} voxels)`],
      ["Mean ± SD", `${value(measurement.mean)} ± ${value(measurement.sd)}${suffix}`],
      ["Min to max", `${value(measurement.low)} to ${value(measurement.high)}${suffix}`],
      ["Box RL × AP × SI", `${measurement.box_mm.map((mm) => mm.toFixed(1)).join(" × ")} mm`],
    ];
    const rows = facts.map(([name, text]) => h("div.fact", {}, h("span.muted", { text: name }), h("span", { text })));
    const lines = measurement.diameters.map((diameter) => this.diameterRow(diameter));
    refill(this.body, ...rows, h("h2", { text: "Longest diameter × across" }), ...lines);
    this.drawPlot();
  }

  diameterRow(diameter) {
    const { name, w } = PLANES[diameter.plane];
    const number = this.viewer.geometry.toRas(diameter.ends[0])[w] + 1;
    return h(
      "button.diameter",
      { type: "button", title: "Go to this slice", "data-plane": diameter.plane, onclick: () => this.goTo(diameter) },
      h("span.muted", { text: name }),
      h("span", { text: `${diameter.length_mm.toFixed(1)} × ${diameter.across_mm.toFixed(1)} mm` }),
      h("span.muted", { text: `slice ${number}` }),
    );
  }

  goTo({ ends: [a, b] }) {
    const middle = a.map((value, axis) => (value + b[axis]) / 2);
    this.viewer.setCrosshair(this.viewer.geometry.nearest(this.viewer.geometry.toRas(middle)));
  }

  /** Draw the diameters on their slices. */
  drawOver(context, plane) {
    if (!this.shown || !this.measurement) return;
    const diameter = this.measurement.diameters.find((item) => item.plane === plane.plane);
    if (!diameter) return;
    const { geometry } = this.viewer;
    if (geometry.toRas(diameter.ends[0])[plane.axes.w] !== plane.index) return;
    for (const [ends, colour] of [[diameter.across_ends, ACROSS], [diameter.ends, LINE]]) {
      const [[x0, y0], [x1, y1]] = ends.map((end) => plane.toScreen(geometry.toRas(end)));
      for (const [width, style] of [[4, "rgba(0, 0, 0, 0.6)"], [1.75, colour]]) {
        context.strokeStyle = style;
        context.lineWidth = width;
        context.beginPath();
        context.moveTo(x0, y0);
        context.lineTo(x1, y1);
        context.stroke();
      }
    }
  }

  /** Areas from the first to the last slice, in the order of the page's slice numbers. */
  get series() {
    const areas = this.measurement?.areas.find(({ plane }) => plane === this.plane.value);
    if (!areas) return null;
    const { w } = PLANES[this.plane.value];
    const { flips, shape } = this.viewer.geometry;
    if (!flips[w]) return { first: areas.first, mm2: areas.mm2 };
    return { first: shape[w] - areas.first - areas.mm2.length, mm2: [...areas.mm2].reverse() };
  }

  drawPlot() {
    const { series } = this;
    if (!series) return;
    const ratio = window.devicePixelRatio || 1;
    this.plot.width = WIDTH * ratio;
    this.plot.height = HEIGHT * ratio;
    const context = this.plot.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const most = Math.max(...series.mm2);
    const step = WIDTH / series.mm2.length;
    context.fillStyle = this.viewer.selected.colour;
    series.mm2.forEach((area, n) => {
      const height = (area / most) * (HEIGHT - 4);
      context.fillRect(n * step, HEIGHT - height, Math.max(1, step - (step > 4 ? 1 : 0)), height);
    });
    const at = this.viewer.crosshair[PLANES[this.plane.value].w] - series.first;
    if (at >= 0 && at < series.mm2.length) {
      context.fillStyle = "rgba(255, 255, 255, 0.85)";
      context.fillRect((at + 0.5) * step - 0.75, 0, 1.5, HEIGHT);
    }
    const last = series.first + series.mm2.length;
    const here = at >= 0 && at < series.mm2.length ? `, here ${area(series.mm2[at])}` : "";
    this.peak.textContent = `Slices ${series.first + 1} to ${last}: most ${area(most)}${here}`;
  }

  goToArea(event) {
    const { series } = this;
    const box = this.plot.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) / box.width) * series.mm2.length);
    this.viewer.setSlice(this.plane.value, series.first + Math.max(0, Math.min(series.mm2.length - 1, at)));
  }

  /** Redraw the plot after the crosshair has moved. */
  follow() {
    if (this.shown && this.measurement) this.drawPlot();
  }
}

function area(mm2) {
  return mm2 >= 100 ? `${(mm2 / 100).toFixed(2)} cm²` : `${mm2.toFixed(1)} mm²`;
}
