/**
 * The crosshair by keys.
 *
 * A plane has the keys while it has focus and keys were used last; the first press of the pointer takes them away,
 * so that Enter is a click for hands on the keys and still accepts a case for hands on the mouse.
 */

/** Voxels of a large step. */
const LARGE = 10;
/** Directions on the screen: planes are drawn with both axes reversed. */
const ARROWS = { ArrowLeft: ["u", 1], ArrowRight: ["u", -1], ArrowUp: ["v", 1], ArrowDown: ["v", -1] };
/** Pixels that the crosshair keeps from the edge of a plane. */
const MARGIN = 20;

export class Keyboard {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.last = false; // whether keys, not the pointer, were used last
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

  /** Show which plane has the keys: with a frame, and with lines at the crosshair. */
  follow() {
    this.viewer.root.classList.toggle("by-keys", this.last);
    this.viewer.status.update();
    this.viewer.redrawOverlays();
  }

  /** The plane that has the keys, or null. */
  get plane() {
    if (!this.last) return null;
    return Object.values(this.viewer.planes).find(({ overlay }) => overlay === document.activeElement) ?? null;
  }

  /** Move the crosshair within the slice as an arrow says; the plane has the keys from then on. */
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

  /** Pan an enlarged plane as far as the crosshair needs to be seen. */
  reveal(plane) {
    const size = [plane.width, plane.height];
    const moved = plane.toScreen(this.viewer.crosshair).map((at, n) => Math.max(MARGIN, Math.min(size[n] - MARGIN, at)) - at);
    if (!moved.some(Boolean)) return;
    plane.pan = plane.pan.map((pan, n) => pan + moved[n]);
    plane.invalidate();
  }

  /** A click where the crosshair is. */
  click(positive) {
    const { viewer } = this;
    if (!viewer.image) return undefined;
    if (viewer.cine.elsewhere) return viewer.cine.refuse();
    return viewer.clickPoint(viewer.crosshair, positive);
  }
}
