/** Screenshot of the planes with the name of the volume and the window below them. */

const FOOT = 30;
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';

/**
 * Render all visible planes, or the enlarged one, as PNG.
 * @param {import("./viewer.js").Viewer} viewer
 * @returns {Promise<Blob>}
 */
export function screenshot(viewer) {
  viewer.surface.requestDraw(); // WebGL discards its buffer after showing it
  viewer.drawNow();
  const stage = viewer.stage.firstChild.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(stage.width * ratio);
  canvas.height = Math.round((stage.height + FOOT) * ratio);
  const context = canvas.getContext("2d", { alpha: false });
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = "#05070a";
  context.fillRect(0, 0, stage.width, stage.height + FOOT);
  for (const pane of viewer.stage.querySelectorAll(".pane")) {
    const box = pane.getBoundingClientRect();
    if (!box.width) continue;
    for (const layer of pane.querySelectorAll("canvas")) {
      context.drawImage(layer, box.left - stage.left, box.top - stage.top, box.width, box.height);
    }
    context.strokeStyle = "#263040";
    context.strokeRect(box.left - stage.left, box.top - stage.top, box.width, box.height);
  }
  drawFoot(context, viewer, stage);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function drawFoot(context, viewer, { width, height }) {
  const { image, volume } = viewer;
  const digits = image.high - image.low < 10 ? 3 : 0;
  const unit = volume.ct ? " HU" : "";
  const level = ((image.low + image.high) / 2).toFixed(digits);
  const facts = `L ${level}  W ${(image.high - image.low).toFixed(digits)}${unit}   R is right   medsam_app, for research`;
  context.textBaseline = "middle";
  context.font = `12px ${FONT}`;
  context.fillStyle = "#8b98a9";
  context.textAlign = "right";
  context.fillText(facts, width - 12, height + FOOT / 2);
  const room = width - 36 - context.measureText(facts).width;
  context.font = `600 13px ${FONT}`;
  context.fillStyle = "#dbe3ec";
  context.textAlign = "left";
  context.fillText(shortened(context, [volume.name, volume.modality].filter(Boolean).join("  "), room), 12, height + FOOT / 2);
}

function shortened(context, text, room) {
  let length = text.length;
  while (length > 1 && context.measureText(text.slice(0, length)).width > room) length -= 1;
  return length < text.length ? `${text.slice(0, Math.max(1, length - 1))}…` : text;
}
