/** Menu for saving the mask in one of several formats, prompts, measurements, a picture, or all of them. */

import { h, iconButton } from "./dom.js";
import { Menu } from "./menu.js";
import { screenshot } from "./screenshot.js";

const FORMATS = [
  ["nifti", "NIfTI", ".nii.gz"],
  ["nrrd", "NRRD", ".nrrd"],
  ["mha", "MetaImage", ".mha"],
  ["dicom-seg", "DICOM segmentation", ".seg.dcm"],
];
/** Key of the last chosen format in localStorage. */
const STORAGE_KEY = "medsam-mask-format";

export class SaveMenu {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.refused = ""; // why a DICOM volume cannot be saved as a DICOM segmentation; empty if it can
    this.button = iconButton({ icon: "save", text: "Save", label: "Save the mask", key: "Ctrl S", id: "save-mask", class: "primary", onclick: () => this.saveMask() });
    this.menu = new Menu({ icon: "more", label: "What to save, and how", id: "save-menu", class: "primary", items: () => this.items() });
    this.element = h("div.joined", {}, this.button, this.menu.element);
  }

  /** The format chosen last if this volume supports it, else NIfTI. */
  get format() {
    const stored = localStorage.getItem(STORAGE_KEY);
    return this.formats.some(([format]) => format === stored) ? stored : "nifti";
  }

  /** Formats for this volume. DICOM segmentations need a DICOM series whose slices they can refer to. */
  get formats() {
    return FORMATS.filter(([format]) => format !== "dicom-seg" || (this.viewer.volume?.dicom && !this.refused));
  }

  /** After a volume is opened, ask the server whether it can be saved as a DICOM segmentation. */
  async setVolume() {
    const { volume, api } = this.viewer;
    this.refused = "";
    if (!volume.dicom) return;
    const { refused } = await api.segmentation();
    if (volume !== this.viewer.volume) return;
    this.refused = refused;
    this.update();
  }

  get hasMask() {
    return this.viewer.state.objects.some((object) => object.mask);
  }

  update() {
    const [, name, ending] = FORMATS.find(([format]) => format === this.format);
    this.button.disabled = !this.hasMask;
    this.button.title = `Save the mask as ${name} (${ending})  (Ctrl S)`;
    this.menu.button.disabled = !this.viewer.volume;
  }

  items() {
    const { viewer, hasMask } = this;
    const supported = this.formats;
    const offered = FORMATS.filter((entry) => supported.includes(entry) || (viewer.volume.dicom && entry[0] === "dicom-seg"));
    const prompts = viewer.state.objects.some((object) => object.prompts.length);
    return [
      ...offered.map(([format, name, ending]) => ({
        label: `Mask as ${name} (${ending})`, id: `save-${format}`, checked: format === this.format, onclick: () => this.saveMask(format),
        ...(format === "dicom-seg" && this.refused ? { disabled: true, why: this.refused } : { disabled: !hasMask }),
      })),
      { label: "Prompts (.prompts.json)", id: "save-prompts", begins: true, disabled: !prompts, onclick: () => this.save("prompts") },
      { label: "Measurements (.csv)", id: "save-measurements", disabled: !hasMask, onclick: () => this.save("measurements.csv") },
      { label: "Areas of all slices (.csv)", id: "save-areas", disabled: !hasMask, onclick: () => this.save("measurements.csv?what=areas") },
      { label: "Picture of what is shown (.png)", id: "save-screenshot", key: "I", onclick: () => this.saveScreenshot() },
      { label: "Everything in one file (.zip)", id: "save-case", begins: true, disabled: !hasMask, onclick: () => this.saveCase() },
    ];
  }

  async saveMask(format = this.format) {
    await this.viewer.queue; // include all earlier clicks in the file
    if (!this.hasMask) return this.viewer.toasts.show("There is no mask to save yet; click inside an object first.", "warning");
    localStorage.setItem(STORAGE_KEY, format);
    this.update();
    return this.save(`mask?${new URLSearchParams({ format })}`);
  }

  save(path, options) {
    const { viewer } = this;
    return viewer.watch("Saving", async () => {
      await viewer.queue;
      viewer.toasts.show(`Saved ${await viewer.api.download(path, options)}`);
    });
  }

  async saveCase() {
    await this.viewer.queue;
    const body = await screenshot(this.viewer);
    return this.save(`case?${new URLSearchParams({ format: this.format })}`, { method: "POST", body });
  }

  async saveScreenshot() {
    const { viewer } = this;
    if (!viewer.image) return;
    viewer.toasts.show(`Saved ${viewer.api.saveFile(await screenshot(viewer), `${viewer.volume.name}_view.png`)}`);
  }
}
