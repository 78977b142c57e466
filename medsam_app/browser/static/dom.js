/** DOM helpers. Text is always set through textContent, so names are never interpreted as markup. */

/**
 * Create an element.
 * @param {string} tag name, optionally with classes: "button.tool.primary"
 * @param {Object<string, any>} [attributes] `on*` functions become listeners, `text` becomes the text
 * @param {...(Node|string|null|false|undefined)} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(node.style, value);
    else if (key in node && typeof value !== "string") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children) if (child || child === "") node.append(child);
  return node;
}

/** Replace the children of an element; keyboard focus stays at the same position. */
export function refill(parent, ...children) {
  const listFocusable = () => [...parent.querySelectorAll("button, input, select, a[href], [tabindex]")];
  const position = parent.querySelector(":focus-visible") ? listFocusable().indexOf(document.activeElement) : -1;
  parent.replaceChildren(...children);
  const focusable = listFocusable();
  if (position >= 0) focusable[Math.min(position, focusable.length - 1)]?.focus();
}

const SVG = "http://www.w3.org/2000/svg";

/** Stroke paths of the icons on a 24 x 24 grid. */
const ICONS = {
  navigate: "M12 3v18M3 12h18M12 8a4 4 0 1 0 0 8a4 4 0 1 0 0-8",
  positive: "M12 4a8 8 0 1 0 0 16a8 8 0 1 0 0-16M12 8.5v7M8.5 12h7",
  negative: "M12 4a8 8 0 1 0 0 16a8 8 0 1 0 0-16M8.5 12h7",
  box: "M5 6h14v12H5zM3.5 4.5h3v3h-3zM17.5 4.5h3v3h-3zM3.5 16.5h3v3h-3zM17.5 16.5h3v3h-3z",
  brush: "M20 4c-4 1-8 5-10 8.500l2.500 2.500C16 13 19.500 8.500 20 4zM9 13.500c-2 0-3 1.500-3 3s-1 2-2.500 2.500c2.500 1.500 8 1 8-3z",
  eraser: "M9 19l-4.500-4.500a1.500 1.500 0 0 1 0-2L12.500 4.500a1.500 1.500 0 0 1 2 0l5 5a1.500 1.500 0 0 1 0 2L12 19zM8 9l7 7M9 19h11",
  scribble: "M3.500 15c2-7 5-9 6-7s-3 8-1 8.500s4-7.500 6-7s-1.500 6 .5 6.500s3.500-2 5.500-5",
  lasso: "M12 4.500c5 0 8.500 2.200 8.500 5.500s-3.500 5.500-8.500 5.500S3.500 13.300 3.500 10S7 4.500 12 4.500zM6.500 14.500c-1.500 1-1.500 3 .5 3.500s2.500 1.500 1.500 3",
  undo: "M8 5L4 9l4 4M4 9h10a5.5 5.5 0 0 1 0 11h-4",
  redo: "M16 5l4 4l-4 4M20 9H10a5.5 5.5 0 0 0 0 11h4",
  open: "M3 7a2 2 0 0 1 2-2h4l2 2.5h8a2 2 0 0 1 2 2V17a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2z",
  save: "M12 4v11M7.5 10.5L12 15l4.5-4.5M4 19.5h16",
  cube: "M12 3l8 4.500v9L12 21l-8-4.500v-9zM4 7.500l8 4.500l8-4.500M12 12v9",
  play: "M7 4.500v15l12-7.500z",
  stop: "M6 6h12v12H6z",
  more: "M6 9.500l6 6 6-6",
  fit: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  heat: "M12 3c1 4 5 6 5 11a5 5 0 0 1-10 0c0-2 1-3 2-4c0 2 1 3 2 3c0-4-1-6 1-10z",
  outline: "M12 4.5c5 0 7.5 3 7.5 7s-3 8-7.5 8s-7.5-3-7.5-7.5s2.5-7.5 7.5-7.5z",
  fine: "M4.500 13c-1.500-3 1-4.500 3-5s1.500-3 4-3.200s3 2 4.500 2.500s4 1.200 3.500 4s-2.300 2-2.500 4s-1 4-3.500 3.500s-2.500-1.300-4.500-.8s-3.500-2-4.500-5z",
  eye: "M2.5 12C5 7.5 8.300 5.5 12 5.5s7 2 9.5 6.5c-2.5 4.5-5.800 6.5-9.5 6.5S5 16.5 2.5 12zM12 9a3 3 0 1 0 0 6a3 3 0 1 0 0-6",
  hidden: "M4 4l16 16M9.5 5.800c.8-.2 1.600-.3 2.5-.3c3.700 0 7 2 9.5 6.5c-.9 1.600-1.900 2.900-3 3.900M6.200 7.700C4.800 8.700 3.600 10.100 2.5 12C5 16.5 8.300 18.5 12 18.5c1.700 0 3.200-.4 4.700-1.200",
  trash: "M4.5 6.5h15M9.5 6V4h5v2M6.5 6.5l1 13h9l1-13M10 10v6M14 10v6",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  theme: "M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18M12 3v18M12 7l7-1M12 11h9M12 15h8M12 19h4",
  help: "M9 9.200a3.100 3.100 0 1 1 4.600 2.700c-1 .6-1.600 1.200-1.600 2.400M12 17.400v.2M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18",
  warning: "M12 4L2.800 19.5h18.400zM12 10v4.5M12 16.800v.2",
  target: "M12 3v4M12 17v4M3 12h4M17 12h4",
  file: "M6 3h8l4 4v14H6zM14 3v4h4",
  up: "M12 19V6M6.5 11.5L12 6l5.5 5.5",
  list: "M9 6.500h11M9 12h11M9 17.500h11M4 6.500h.500M4 12h.500M4 17.500h.500",
  check: "M4.500 12.500l5 5l10-11",
  skip: "M6 6l7 6l-7 6zM17 6v12",
  previous: "M14.500 6l-6 6l6 6",
  next: "M9.500 6l6 6l-6 6",
  teach: "M12 5L2.500 9.500L12 14l9.500-4.500zM6.500 11.500v4.500c3.500 2.500 7.500 2.500 11 0v-4.500",
  contrast: "M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18M12 3v18M12 7h5.5M12 12h8.5M12 17h5.5",
};

/** Whether an object's mask comes without a model: it was painted or loaded. */
export function byHand(object) {
  return object.prompts.length > 0 && object.prompts.every((prompt) => ["paint", "mask"].includes(prompt.kind));
}

/**
 * Create an icon as inline SVG in the colour of the surrounding text.
 * @param {keyof typeof ICONS} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * Create a button with an icon and a tooltip that names its key.
 * @param {{icon: string, label: string, key?: string, text?: string, class?: string, onclick: Function, id?: string}} options
 */
export function iconButton(options) {
  const title = options.key ? `${options.label}  (${options.key})` : options.label;
  return h(
    `button.${options.class ?? "tool"}`,
    { type: "button", title, "aria-label": options.label, "data-id": options.id, onclick: options.onclick },
    icon(options.icon),
    options.text && h("span", { text: options.text }),
  );
}

/** Format a byte count, such as "1.4 GB". */
export function formatBytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${unit && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

/** Format a volume in ml with three significant digits, without an exponent. */
export function formatMl(ml) {
  if (ml === 0) return "0 ml";
  if (ml >= 100) return `${Math.round(ml)} ml`;
  return `${ml.toFixed(ml >= 10 ? 1 : 2)} ml`;
}

/** Format a time: hours and minutes if it is today, else the date. @param {string} iso empty for never */
export function formatWhen(iso) {
  if (!iso) return "";
  const time = new Date(iso);
  const today = time.toDateString() === new Date().toDateString();
  return today ? time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : time.toLocaleDateString();
}
