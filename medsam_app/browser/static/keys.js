/** Key bindings in one table, used by the key handler and the help dialog. */

import { CT_PRESETS } from "./image.js";

/**
 * [group, keys shown, what it does, matcher(event, viewer), action(viewer, event)]. The first match wins.
 * @type {[string, string, string, (event: KeyboardEvent, viewer: any) => boolean, (viewer: any, event: KeyboardEvent) => any][]}
 */
export const KEYS = [
  ["Modes", "1  V", "Navigate: move the crosshair", plain("1", "v"), (viewer) => viewer.setMode("navigate")],
  ["Modes", "2  A", "Add: a click inside the object", plain("2", "a"), (viewer) => viewer.setMode("positive")],
  ["Modes", "3  S", "Subtract: a click outside it", plain("3", "s"), (viewer) => viewer.setMode("negative")],
  ["Modes", "4  B", "Box: drag around the object", plain("4", "b"), (viewer) => viewer.setMode("box")],
  ["Modes", "5  P", "Brush: paint the mask", plain("5", "p"), (viewer) => viewer.setMode("brush")],
  ["Modes", "6", "Eraser", plain("6"), (viewer) => viewer.setMode("eraser")],
  ["Modes", "7", "Scribble: a line inside the object", plain("7"), (viewer) => viewer.setMode("scribble")],
  ["Modes", "8", "Lasso: fill what it goes around", plain("8"), (viewer) => viewer.setMode("lasso")],
  ["Editing", "−  =", "Smaller, larger brush", plain("-", "_", "=", "+"), (viewer, event) => viewer.edit.stepRadius("=+".includes(event.key) ? 1 : -1)],
  ["Editing", "K", "Lock the slice of the plane under the pointer, or unlock it", plain("k"), (viewer) => viewer.edit.toggleLock()],
  ["Editing", "Z", "Undo", chord("z", false), (viewer) => viewer.undo()],
  ["Editing", "Shift Z", "Redo", chord("z", true), (viewer) => viewer.redo()],
  ["Editing", "Ctrl Y", "Redo", control("y"), (viewer) => viewer.redo()],
  ["Editing", "X", "Delete the prompt under the pointer, or the last one", plain("x", "delete"), (viewer) => viewer.deletePromptAtHand()],
  ["Editing", "Enter", "In a plane with a frame (Tab, or Shift and an arrow): a click inside the object, at the crosshair", clickByKey(false), (viewer) => viewer.keyboard.click(true)],
  ["Editing", "Shift  Enter", "The same, outside the object", clickByKey(true), (viewer) => viewer.keyboard.click(false)],
  ["Editing", "N", "New object", plain("n"), (viewer) => viewer.addObject()],
  ["Editing", "[  ]", "After the first click or box of an object: the next smaller, larger mask", plain("[", "]"), (viewer, event) => viewer.chooseMask(event.key === "]" ? 1 : -1)],
  ["Editing", "{  }", "Previous, next object", plain("{", "}"), (viewer, event) => viewer.stepObject(event.key === "}" ? 1 : -1)],
  ["Editing", "E", "Fine outlines of large objects, on or off: slower", plain("e"), (viewer) => viewer.toggleFine()],
  ["Editing", "Ctrl S", "Save the mask in the format chosen last", control("s"), (viewer) => viewer.toolbar.save.saveMask()],
  ["Worklist", ",  .", "Previous, next case", plain(",", "."), (viewer, event) => viewer.worklist.step(event.key === "." ? 1 : -1)],
  ["Worklist", "Enter", "Accept the case: its mask is written, and the next one opened; in a plane with a frame with Ctrl", enter, (viewer) => viewer.worklist.judge("accepted")],
  ["Worklist", "U", "Skip the case", plain("u"), (viewer) => viewer.worklist.judge("skipped")],
  ["Worklist", "Q", "Show or hide the worklist", plain("q"), (viewer) => viewer.worklist.toggle()],
  ["Moving", "Shift  ← ↑ ↓ →", "The crosshair within the slice, with Ctrl by ten voxels", shiftArrow, (viewer, event) => viewer.keyboard.move(event)],
  ["Moving", "↑  ↓", "Next, previous slice of the plane under the pointer", plain("arrowup", "arrowdown"), (viewer, event) => viewer.scrollActive(event.key === "ArrowUp" ? 1 : -1)],
  ["Moving", "PgUp  PgDn", "Ten slices", plain("pageup", "pagedown"), (viewer, event) => viewer.scrollActive(event.key === "PageUp" ? 10 : -10)],
  ["Moving", "Home  End", "First, last slice", plain("home", "end"), (viewer, event) => viewer.scrollActive(event.key === "Home" ? -1e6 : 1e6)],
  ["Moving", "C", "Centre the crosshair on the object", plain("c"), (viewer) => viewer.centreOnObject()],
  ["Moving", "M", "Enlarge the plane under the pointer, or back", plain("m"), (viewer) => viewer.toggleMaximised()],
  ["Moving", "F", "Fit the planes to the window", plain("f"), (viewer) => viewer.fit()],
  ["Seeing", "O", "Opacity of the masks: 0, 25, 45, 70 %", plain("o"), (viewer) => viewer.cycleOpacity()],
  ["Seeing", "L", "Outlines on or off", plain("l"), (viewer) => viewer.toggle("outline")],
  ["Seeing", "H", "Hide or show all masks", plain("h"), (viewer) => viewer.toggle("masksHidden")],
  ["Seeing", "R", "Crosshair lines on or off", plain("r"), (viewer) => viewer.toggle("crosshair")],
  ["Seeing", "W", "Next window preset", plain("w"), (viewer) => viewer.nextPreset()],
  ["Seeing", "D", "Where the model is in doubt about the object, on or off", plain("d"), (viewer) => viewer.heat.toggle()],
  ["Moving", "J", "Go to the place where a click says most", plain("j"), (viewer) => viewer.heat.jump()],
  ["Seeing", "T", "Surfaces of the objects beside the planes, on or off", plain("t"), (viewer) => viewer.surface.toggle()],
  ["Seeing", "Y", "Slabs instead of slices: maximum, minimum, mean, off", plain("y"), (viewer) => viewer.projection.next()],
  ["Seeing", "<  >", "Previous, next frame of a file of several", plain("<", ">"), (viewer, event) => viewer.cine.step(event.key === ">" ? 1 : -1)],
  ["Seeing", "I", "Save a picture of what is shown", plain("i"), (viewer) => viewer.toolbar.save.saveScreenshot()],
  ["Seeing", "G", "Colours of the page: as the system, light, dark", plain("g"), (viewer) => viewer.nextTheme()],
  ["Seeing", "?", "This help", (event) => event.key === "?", (viewer) => viewer.toggleHelp()],
];

/** Mouse and touch gestures, for the help dialog. */
export const MOUSE = [
  ["Wheel", "Scroll through the slices"],
  ["Ctrl + wheel, pinch", "Zoom at the pointer"],
  ["Middle drag, Space + drag", "Pan"],
  ["Right drag", "Window (sideways) and level (up and down)"],
  ["Shift + click", "The opposite: subtract in Add, add in Subtract, erase with the brush or the lasso"],
  ["Drag a point", "Move it to another place"],
  ["Double click (Navigate)", "Enlarge a plane, or back"],
  ["Surfaces", "Drag turns, wheel zooms, right drag moves; a click moves the crosshair to the surface"],
  [
    "Box",
    "Drag on any plane: a box on that slice. To give it depth, pull its sides on another plane, where it shows as a thin bar",
  ],
];

/** Names of the presets, for the tooltip of the selector. */
export const PRESET_NAMES = CT_PRESETS.map(([name]) => name);

function plain(...keys) {
  return (event) => !event.ctrlKey && !event.metaKey && !event.altKey && keys.includes(event.key.toLowerCase());
}

function chord(key, shift) {
  return (event) => !event.altKey && event.key.toLowerCase() === key && event.shiftKey === shift;
}

/** Match Enter outside of buttons and rows. */
function enter(event) {
  return event.key === "Enter" && !event.repeat && !event.target.closest?.("button, a, summary, [role=option], [role=tab], .worklist");
}

/** Match Enter while a plane receives the keys. */
function clickByKey(shift) {
  return (event, viewer) => event.key === "Enter" && !event.repeat && !event.ctrlKey && !event.metaKey && event.shiftKey === shift && viewer.keyboard.plane;
}

function shiftArrow(event) {
  return event.shiftKey && !event.altKey && event.key.startsWith("Arrow");
}

function control(key) {
  return (event) => (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === key;
}

/** Attach the key bindings to the page; typing in a field is not intercepted. */
export function listenToKeys(viewer) {
  document.addEventListener("keydown", (event) => {
    if (event.target.closest?.("input:not([type=range]):not([type=checkbox]), textarea, select")) return;
    if (event.key === "Escape" && viewer.escape()) {
      event.preventDefault();
      return;
    }
    if (document.querySelector("dialog[open]") && event.key !== "?") return;
    if (event.key === " ") {
      if (event.target.closest?.("button, summary, a, input[type=checkbox]")) return;
      viewer.setSpaceHeld(true);
      event.preventDefault();
      return;
    }
    for (const [, , , matches, action] of KEYS) {
      if (!matches(event, viewer)) continue;
      event.preventDefault();
      const { crosshair } = viewer;
      Promise.resolve(action(viewer, event)).then(() => viewer.crosshair !== crosshair && viewer.voice.place());
      return;
    }
  });
  document.addEventListener("keyup", (event) => event.key === " " && viewer.setSpaceHeld(false));
  window.addEventListener("blur", () => viewer.setSpaceHeld(false));
}
