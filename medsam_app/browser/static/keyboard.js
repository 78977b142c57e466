/**
 * Keyboard control of the crosshair.
 *
 * A plane receives the keys while it has focus and the last input came from the keyboard. A press of the pointer
 * ends this. So Enter places a click for keyboard users and still accepts a case for mouse users.
 */

/** Size of a large step in voxels. */
const LARGE = 10;
/** [plane axis, sign] of each arrow; planes are drawn with both axes reversed. */
const ARROWS = { ArrowLeft: ["u", 1], ArrowRight: ["u", -1], ArrowUp: ["v", 1], ArrowDown: ["v", -1] };
/** Minimum distance in pixels of the crosshair from the edge of a plane. */
const MARGIN = 20;

export class Keyboard {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.last = false; // whether the last input came from the keyboard
    document.addEventListener("pointerdown", () => this.use(false), true);
    document.addEventListener("keydown", (event) => event.key === "Tab" && this.use(true), true);
  }

  /** @param {import("./plane.js").PlaneView} plane */
  attach(plane) {
    plane.overlay.addEventListener("focus", () => {
      this.viewer.active = plane.plane;
      this.follow();
    });
    plane.overlay.addEventListener("blur", () => this.follow());
  }

  use(keys) {
    if (keys === this.last) return;
    this.last = keys;
    this.follow();
  }

  /** Mark the plane that receives the keys with a frame and crosshair lines. */
  follow() {
    this.viewer.root.classList.toggle("by-keys", this.last);
    this.viewer.status.update();
    this.viewer.redrawOverlays();
  }

  /** The plane that receives the keys, or null. */
  get plane() {
    if (!this.last) return null;
    return Object.values(this.viewer.planes).find(({ overlay }) => overlay === document.activeElement) ?? null;
  }

  /** Move the crosshair within the slice by an arrow key; the plane receives the keys from then on. */
  move(event) {
    const { viewer } = this;
    if (!viewer.image) return;
    this.use(true);
    const plane = this.plane ?? viewer.planes[viewer.maximised ?? viewer.active];
    plane.overlay.focus({ preventScroll: true });
    const [axis, sign] = ARROWS[event.key];
    const xyz = [...viewer.crosshair];
    xyz[plane.axes[axis]] += sign * (event.ctrlKey || event.metaKey ? LARGE : 1);
    viewer.setCrosshair(viewer.geometry.nearest(xyz));
    this.reveal(plane);
  }

  /** Pan an enlarged plane just enough to make the crosshair visible. */
  reveal(plane) {
    const size = [plane.width, plane.height];
    const shift = plane.toScreen(this.viewer.crosshair).map((value, n) => Math.max(MARGIN, Math.min(size[n] - MARGIN, value)) - value);
    if (!shift.some(Boolean)) return;
    plane.pan = plane.pan.map((pan, n) => pan + shift[n]);
    plane.invalidate();
  }

  /** Place a click at the crosshair. */
  click(positive) {
    const { viewer } = this;
    if (!viewer.image) return undefined;
    if (viewer.cine.onOtherFrame) return viewer.cine.refuse();
    return viewer.clickPoint(viewer.crosshair, positive);
  }
}
