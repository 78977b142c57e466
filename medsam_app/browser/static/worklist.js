/**
 * Worklist in the left column: the cases of a folder, their states, and navigation between them.
 *
 * The server stores every change of a case before it responds. So a page that loses its server waits for it to
 * return and opens the case again.
 */

import { formatWhen, h, icon, iconButton } from "./dom.js";
import { TeachPanel } from "./teach_panel.js";
import { askConflict, askEmpty, askName } from "./worklist_dialogs.js";

const MARKS = { new: "○", "in progress": "◐", "to review": "◎", accepted: "●", skipped: "–" };
const STATES = Object.keys(MARKS);
const UNFINISHED = ["new", "in progress"];
/** Maximum number of rows drawn at a time. */
const MOST_ROWS = 1000;
const STORAGE_KEY = "medsam-worklist";
const NAME_KEY = "medsam-who";
/** Milliseconds between requests for changes by other users, and between attempts to reconnect. */
const REFRESH_INTERVAL = 10_000;
const RETRY_INTERVAL = 1500;

export class Worklist {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.where = null; // {root, path} of the folder
    this.data = { stamp: "", folder: "", counts: {}, cases: [] };
    this.current = null; // name of the open case
    this.requested = null; // {name} of the case requested last, until it is open
    this.version = 0;
    this.resolving = false;
    this.heading = h("h2", {});
    this.filter = h("select", { "aria-label": "Show cases of", "data-id": "worklist-filter", onchange: () => this.draw() });
    this.search = h("input", { type: "search", placeholder: "Search", "aria-label": "Search for a case", "data-id": "worklist-search", oninput: () => this.draw(), onkeydown: (event) => event.key === "Enter" && this.openFound() });
    this.list = h("ul", { "aria-label": "Cases", onkeydown: (event) => this.walk(event) });
    this.more = h("p.hint", { hidden: true });
    this.leftOut = h("p.hint", { hidden: true, "data-id": "left-out", title: "Files such as x_seg.nii.gz beside x.nii.gz, or those of labelsTr beside imagesTr. Open their own folder as a worklist to go through them." });
    this.unread = h("p.hint", { hidden: true, "data-id": "unread", title: "Folders that the server may not look into, archives for which it has no room, and names that are not UTF-8." });
    this.counts = h("p.counts", { role: "status" });
    const step = (name, label, key, by) => iconButton({ icon: name, label, key, class: "plain", id: `case-${name}`, onclick: () => this.step(by) });
    this.buttons = h(
      "div.judge",
      { role: "group", "aria-label": "The open case" },
      iconButton({ icon: "check", text: "Accept", label: "Accept the case and go on", key: "Enter", id: "accept", class: "primary", onclick: () => this.judge("accepted") }),
      iconButton({ icon: "help", text: "Review", label: "Somebody should look at this case", id: "to-review", class: "small", onclick: () => this.judge("to review") }),
      iconButton({ icon: "skip", text: "Skip", label: "Skip the case", key: "U", id: "skip", class: "small", onclick: () => this.judge("skipped") }),
    );
    this.teach = new TeachPanel(this);
    this.element = h(
      "aside.worklist",
      { "aria-label": "Worklist", hidden: true },
      h("header", {}, this.heading, step("previous", "Previous case", ",", -1), step("next", "Next case", ".", 1), iconButton({ icon: "close", label: "Hide the worklist", key: "Q", class: "plain", onclick: () => this.toggle() })),
      h("div.find", {}, this.filter, this.search),
      this.list,
      this.more,
      this.leftOut,
      this.unread,
      this.counts,
      this.buttons,
      this.teach.element,
    );
    // A click in the picture moves focus away from the search field, so that keys are shortcuts again.
    viewer.stage.addEventListener("pointerdown", () => this.element.contains(document.activeElement) && document.activeElement.blur(), true);
    // A button clicked with the mouse loses focus, so that the next Enter accepts the case.
    this.element.addEventListener("click", (event) => event.detail && document.activeElement.matches("button") && document.activeElement.blur());
    setInterval(() => this.where && !document.hidden && !viewer.busy && this.refresh().catch(() => {}), REFRESH_INTERVAL);
  }

  get api() {
    return this.viewer.api;
  }

  async ask(route, body = {}, query = {}) {
    return this.api.json(await this.api.post(`${route}?${new URLSearchParams(query)}`, body));
  }

  // ---- opening -----------------------------------------------------------------------------------

  /** Open a folder of the server, and its first unfinished case. */
  openFolder(root, path) {
    return this.viewer.guard(async () => {
      await this.introduce();
      await this.load({ root, path }, true);
      this.toggle(true);
      const first = this.data.cases.find((entry) => UNFINISHED.includes(entry.state) && !entry.missing && !entry.problem);
      if (first) await this.openCase(first.name);
    });
  }

  /** Resume the worklist of this tab. @returns {Promise<boolean>} whether a case was opened */
  async resume(hello) {
    this.hello(hello);
    const stored = JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? "null");
    if (!stored) return false;
    try {
      await this.load(stored.where);
      this.toggle(true);
      if (!stored.current || (hello.volume && hello.case !== stored.current)) return false;
      if (hello.case === stored.current) await this.viewer.show(hello);
      else await this.openNow(stored.current);
      return true;
    } catch (error) {
      sessionStorage.removeItem(STORAGE_KEY);
      this.viewer.toasts.show(error.message, "error");
      return false;
    }
  }

  /** Apply the server's greeting: the login name, if any. */
  hello(hello) {
    this.login = hello.login;
    this.api.who = this.login ?? localStorage.getItem(NAME_KEY) ?? "";
  }

  /** Ask for the user's name once if the server has no login. */
  async introduce() {
    if (this.login || localStorage.getItem(NAME_KEY) !== null) return;
    const name = await askName(this.viewer.root);
    localStorage.setItem(NAME_KEY, name);
    this.api.who = name;
  }

  async load(where, refresh = false) {
    this.take(await this.ask("worklist", where, { refresh }));
    this.where = where;
    this.store();
    this.teach.load();
  }

  store() {
    if (this.where) sessionStorage.setItem(STORAGE_KEY, JSON.stringify({ where: this.where, current: this.current }));
  }

  /** Open a case after all queued actions are done. @param {object} [part] such as {frame: 2} */
  openCase(name, part = {}) {
    const { viewer } = this;
    const request = (this.requested = { name });
    viewer.queue = viewer.queue.then(async () => {
      if (this.requested !== request) return; // another case has been requested since
      await viewer.watch("Reading the volume", () => this.openNow(name, part));
      if (this.requested === request) this.requested = null;
    });
    return viewer.queue;
  }

  openNow(name, part = {}) {
    return this.viewer.openNow({ ...this.where, name, ...part }, (chosen) => this.ask("worklist/case", chosen));
  }

  /** Open the first search result. */
  openFound() {
    const [first] = this.rows();
    this.search.blur();
    if (first) this.openCase(first.name);
  }

  /** Open the previous (-1) or next (1) case of the filtered list. */
  step(by) {
    const rows = this.rows();
    const from = this.requested?.name ?? this.current;
    const at = rows.findIndex((entry) => entry.name === from);
    const next = at < 0 ? rows[0] : rows[at + by];
    if (next) return this.openCase(next.name);
    return this.viewer.toasts.show(by > 0 ? "That is the last case of the list." : "That is the first case of the list.");
  }

  /** Set the state of the open case, and open the next unfinished one. */
  async judge(state) {
    const { viewer, current: name } = this;
    if (!name) return this.where && viewer.toasts.show("No case is open; choose one from the list.");
    await viewer.queue;
    if (this.current !== name) return undefined; // another case has been opened meanwhile
    const empty = !viewer.state.objects.some((object) => object.mask);
    if (state === "accepted" && empty && !(await askEmpty(viewer.root, name))) return undefined;
    viewer.queue = viewer.queue.then(() =>
      viewer.watch("Saving", async () => {
        this.take(await this.ask("worklist/state", { ...this.where, name, state, version: this.version, empty }));
        viewer.toasts.show(`${name}: ${state}`);
        this.teach.load();
        const open = this.data.cases.filter((entry) => UNFINISHED.includes(entry.state) && !entry.missing && !entry.problem);
        const next = open.find((entry) => entry.name > name) ?? open[0];
        if (next) await this.openNow(next.name);
        else viewer.toasts.show("Every case of the list is done.");
      }),
    );
    return viewer.queue;
  }

  // ---- responses of the server -------------------------------------------------------------------

  async refresh() {
    const answer = await this.ask("worklist", this.where, { stamp: this.data.stamp });
    if (answer.cases) this.take(answer);
    this.teach.load();
  }

  take(data) {
    this.data = data;
    this.draw();
  }

  /** Follow the open case; called with every new state of the session. */
  follow(caseState) {
    const before = `${this.current} ${this.version}`;
    this.current = caseState?.name ?? null;
    this.version = caseState?.version ?? 0;
    if (!this.where) return;
    if (`${this.current} ${this.version}` !== before) {
      this.store();
      this.draw();
      this.refresh().catch(() => {});
    }
    if (caseState?.conflict) this.settle(caseState.problem);
    else if (caseState?.problem) this.viewer.toasts.show(`This is not kept yet. ${caseState.problem}`, "error");
  }

  /** Let the user resolve a conflict with changes by another user. */
  async settle(sentence) {
    if (this.resolving) return;
    this.resolving = true;
    const choice = await askConflict(this.viewer.root, sentence);
    this.resolving = false;
    if (choice) await this.viewer.guard(() => this.ask("worklist/resolve", { keep: choice }));
    if (choice) await this.viewer.act({ do: "look" }, "Opening the case");
  }

  /** If the server is gone or has lost this session, reconnect and open the case again. @returns {boolean} whether it handled the error */
  lost(error) {
    if (!this.where || ![0, 401].includes(error.status)) return false;
    this.reconnecting ??= this.reconnect().finally(() => (this.reconnecting = null));
    return true;
  }

  async reconnect() {
    const { viewer, current } = this;
    viewer.toasts.show("The server does not answer; waiting for it. What was done is kept.", "warning");
    let hello = null;
    while (!hello) {
      hello = await this.api.connect().catch(() => null);
      if (!hello) await new Promise((done) => setTimeout(done, RETRY_INTERVAL));
    }
    viewer.hello = hello;
    viewer.sidebar.setModel(hello);
    this.hello(hello);
    if (hello.case === current) await viewer.act({ do: "look" }, "Connecting");
    else if (current) await this.openCase(current);
    viewer.toasts.show("Connected again; the case is as it was kept.");
  }

  // ---- drawing -----------------------------------------------------------------------------------

  toggle(on = this.element.hidden) {
    if (on && !this.where) return this.viewer.toasts.show("No worklist is open: Open, choose a folder, and open it as a worklist.");
    this.element.hidden = !on;
    this.viewer.root.classList.toggle("listing", on);
    return undefined;
  }

  rows() {
    const text = this.search.value.trim().toLowerCase();
    const state = this.filter.value;
    return this.data.cases.filter((entry) => (!state || entry.state === state) && (!text || entry.name.toLowerCase().includes(text)));
  }

  draw() {
    const { counts, cases, folder, left_out: leftOut, unread } = this.data;
    this.heading.textContent = this.heading.title = folder;
    const chosen = this.filter.value;
    const option = (value, text) => h("option", { value, text, selected: value === chosen });
    this.filter.replaceChildren(option("", `All ${cases.length}`), ...STATES.map((state) => option(state, `${state[0].toUpperCase()}${state.slice(1)} ${counts[state]}`)));
    const rows = this.rows();
    const at = Math.max(0, rows.findIndex((entry) => entry.name === this.current));
    const start = Math.max(0, Math.min(at - MOST_ROWS / 2, rows.length - MOST_ROWS));
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.case : null;
    this.list.replaceChildren(...rows.slice(start, start + MOST_ROWS).map((entry) => this.row(entry)));
    this.more.hidden = rows.length > 0 && rows.length <= MOST_ROWS;
    this.more.textContent = rows.length ? `${rows.length - MOST_ROWS} more; search for them.` : "No such case.";
    this.leftOut.hidden = !leftOut;
    this.leftOut.textContent = leftOut === 1 ? "1 label file beside its image is left out." : `${leftOut} label files beside their images are left out.`;
    this.unread.hidden = !unread;
    this.unread.textContent = `${unread} that cannot be read ${unread === 1 ? "is" : "are"} left out.`;
    this.counts.textContent = `${counts.accepted} of ${cases.length} accepted`;
    this.list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
    if (focused) [...this.list.querySelectorAll("button")].find((entry) => entry.dataset.case === focused)?.focus();
    for (const button of this.buttons.children) button.disabled = !this.current;
  }

  row(entry) {
    const problem = entry.missing ? "The file is not there any more" : entry.problem;
    const details = [entry.state, entry.who, formatWhen(entry.changed)].filter(Boolean).join(" · ");
    return h(
      "li",
      {},
      h(
        `button.case`,
        {
          type: "button", "data-case": entry.name, "data-state": entry.state, title: [entry.name, details, problem].filter(Boolean).join("\n"),
          "aria-current": entry.name === this.current ? "true" : null, onclick: () => this.openCase(entry.name),
        },
        h("span.mark", { "aria-hidden": "true", text: MARKS[entry.state] }),
        h("span.what", {}, h("span.name", { text: entry.name }), h("small", { text: details })),
        problem ? h("span.alert", {}, icon("warning")) : null,
      ),
    );
  }

  /** Move between rows with the arrow keys. */
  walk(event) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const buttons = [...this.list.querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + by]?.focus();
  }
}
