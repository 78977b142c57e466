/**
 * The worklist at the left: the cases of a folder, how far each is, and the way from one to the next.
 *
 * The server keeps every change of a case before it answers, so a page that loses its server asks for the case
 * again as soon as there is one.
 */

import { formatWhen, h, icon, iconButton } from "./dom.js";
import { TeachPanel } from "./teach_panel.js";
import { askConflict, askEmpty, askName } from "./worklist_dialogs.js";

const MARKS = { new: "○", "in progress": "◐", "to review": "◎", accepted: "●", skipped: "–" };
const STATES = Object.keys(MARKS);
const OPEN = ["new", "in progress"];
/** Rows that are drawn at a time. */
const MOST_ROWS = 1000;
const KEPT = "medsam-worklist";
const WHO = "medsam-who";
/** Milliseconds between looks at what others did, and between tries to find a server again. */
const LOOK = 10_000;
const RETRY = 1500;

export class Worklist {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.where = null; // {root, path} of the folder
    this.data = { stamp: "", folder: "", counts: {}, cases: [] };
    this.current = null; // name of the case that is open
    this.bound = null; // of the one that was asked for last, until it is open
    this.version = 0;
    this.asking = false;
    this.heading = h("h2", {});
    this.filter = h("select", { "aria-label": "Show cases of", "data-id": "worklist-filter", onchange: () => this.draw() });
    this.search = h("input", { type: "search", placeholder: "Search", "aria-label": "Search for a case", "data-id": "worklist-search", oninput: () => this.draw(), onkeydown: (event) => event.key === "Enter" && this.openFound() });
    this.list = h("ul", { "aria-label": "Cases", onkeydown: (event) => this.walk(event) });
    this.more = h("p.hint", { hidden: true });
    this.left = h("p.hint", { hidden: true, "data-id": "left-out", title: "Files such as x_seg.nii.gz beside x.nii.gz, or those of labelsTr beside imagesTr. Open their own folder as a worklist to go through them." });
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
      this.left,
      this.unread,
      this.counts,
      this.buttons,
      this.teach.element,
    );
    // Who clicks in the picture has done searching: keys are the picture's again.
    viewer.stage.addEventListener("pointerdown", () => this.element.contains(document.activeElement) && document.activeElement.blur(), true);
    // A button that was clicked with the mouse does not take the next Enter, which accepts.
    this.element.addEventListener("click", (event) => event.detail && document.activeElement.matches("button") && document.activeElement.blur());
    setInterval(() => this.where && !document.hidden && !viewer.busy && this.refresh().catch(() => {}), LOOK);
  }

  get api() {
    return this.viewer.api;
  }

  async ask(route, body = {}, query = {}) {
    return this.api.json(await this.api.post(`${route}?${new URLSearchParams(query)}`, body));
  }

  // ---- opening -----------------------------------------------------------------------------------

  /** Open a folder of the server, and its first case that is not done. */
  openFolder(root, path) {
    return this.viewer.guard(async () => {
      await this.introduce();
      await this.load({ root, path }, true);
      this.toggle(true);
      const first = this.data.cases.find((each) => OPEN.includes(each.state) && !each.missing && !each.problem);
      if (first) await this.openCase(first.name);
    });
  }

  /** Take up the worklist of this tab. @returns {Promise<boolean>} whether a case is open then */
  async resume(hello) {
    this.hello(hello);
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    if (!kept) return false;
    try {
      await this.load(kept.where);
      this.toggle(true);
      if (!kept.current || (hello.volume && hello.case !== kept.current)) return false;
      if (hello.case === kept.current) await this.viewer.show(hello);
      else await this.openNow(kept.current);
      return true;
    } catch (error) {
      sessionStorage.removeItem(KEPT);
      this.viewer.toasts.show(error.message, "error");
      return false;
    }
  }

  /** What the server says of itself: who is logged in. */
  hello(hello) {
    this.login = hello.login;
    this.api.who = this.login ?? localStorage.getItem(WHO) ?? "";
  }

  /** Ask for a name once, where nobody is logged in. */
  async introduce() {
    if (this.login || localStorage.getItem(WHO) !== null) return;
    const name = await askName(this.viewer.root);
    localStorage.setItem(WHO, name);
    this.api.who = name;
  }

  async load(where, refresh = false) {
    this.take(await this.ask("worklist", where, { refresh }));
    this.where = where;
    this.keep();
    this.teach.load();
  }

  keep() {
    if (this.where) sessionStorage.setItem(KEPT, JSON.stringify({ where: this.where, current: this.current }));
  }

  /** Open a case when all that was clicked before is done. @param {object} [part] such as {frame: 2} */
  openCase(name, part = {}) {
    const { viewer } = this;
    const bound = (this.bound = { name });
    viewer.queue = viewer.queue.then(async () => {
      if (this.bound !== bound) return; // another one was asked for since
      await viewer.watch("Reading the volume", () => this.openNow(name, part));
      if (this.bound === bound) this.bound = null;
    });
    return viewer.queue;
  }

  openNow(name, part = {}) {
    return this.viewer.openNow({ ...this.where, name, ...part }, (chosen) => this.ask("worklist/case", chosen));
  }

  /** Open the first case that the search found. */
  openFound() {
    const [first] = this.rows();
    this.search.blur();
    if (first) this.openCase(first.name);
  }

  /** The case before or after in the list as it is shown. */
  step(by) {
    const rows = this.rows();
    const from = this.bound?.name ?? this.current;
    const at = rows.findIndex((each) => each.name === from);
    const next = at < 0 ? rows[0] : rows[at + by];
    if (next) return this.openCase(next.name);
    return this.viewer.toasts.show(by > 0 ? "That is the last case of the list." : "That is the first case of the list.");
  }

  /** Say how far the open case is, and go on. */
  async judge(state) {
    const { viewer, current: name } = this;
    if (!name) return this.where && viewer.toasts.show("No case is open; choose one from the list.");
    await viewer.queue;
    if (this.current !== name) return undefined; // it was said of another case
    const empty = !viewer.state.objects.some((object) => object.mask);
    if (state === "accepted" && empty && !(await askEmpty(viewer.root, name))) return undefined;
    viewer.queue = viewer.queue.then(() =>
      viewer.watch("Saving", async () => {
        this.take(await this.ask("worklist/state", { ...this.where, name, state, version: this.version, empty }));
        viewer.toasts.show(`${name}: ${state}`);
        this.teach.load();
        const open = this.data.cases.filter((each) => OPEN.includes(each.state) && !each.missing && !each.problem);
        const next = open.find((each) => each.name > name) ?? open[0];
        if (next) await this.openNow(next.name);
        else viewer.toasts.show("Every case of the list is done.");
      }),
    );
    return viewer.queue;
  }

  // ---- what the server says ----------------------------------------------------------------------

  async refresh() {
    const answer = await this.ask("worklist", this.where, { stamp: this.data.stamp });
    if (answer.cases) this.take(answer);
    this.teach.load();
  }

  take(data) {
    this.data = data;
    this.draw();
  }

  /** How the open case stands, with every state of the session. */
  follow(said) {
    const before = `${this.current} ${this.version}`;
    this.current = said?.name ?? null;
    this.version = said?.version ?? 0;
    if (!this.where) return;
    if (`${this.current} ${this.version}` !== before) {
      this.keep();
      this.draw();
      this.refresh().catch(() => {});
    }
    if (said?.conflict) this.settle(said.problem);
    else if (said?.problem) this.viewer.toasts.show(`This is not kept yet. ${said.problem}`, "error");
  }

  /** Somebody else changed the case: theirs or mine? */
  async settle(sentence) {
    if (this.asking) return;
    this.asking = true;
    const keep = await askConflict(this.viewer.root, sentence);
    this.asking = false;
    if (keep) await this.viewer.guard(() => this.ask("worklist/resolve", { keep }));
    if (keep) await this.viewer.act({ do: "look" }, "Opening the case");
  }

  /** The server is gone, or knows this page no more: wait for one and open the case again. */
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
      if (!hello) await new Promise((done) => setTimeout(done, RETRY));
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
    return this.data.cases.filter((each) => (!state || each.state === state) && (!text || each.name.toLowerCase().includes(text)));
  }

  draw() {
    const { counts, cases, folder, left_out: left, unread } = this.data;
    this.heading.textContent = this.heading.title = folder;
    const chosen = this.filter.value;
    const option = (value, text) => h("option", { value, text, selected: value === chosen });
    this.filter.replaceChildren(option("", `All ${cases.length}`), ...STATES.map((state) => option(state, `${state[0].toUpperCase()}${state.slice(1)} ${counts[state]}`)));
    const rows = this.rows();
    const at = Math.max(0, rows.findIndex((each) => each.name === this.current));
    const start = Math.max(0, Math.min(at - MOST_ROWS / 2, rows.length - MOST_ROWS));
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.case : null;
    this.list.replaceChildren(...rows.slice(start, start + MOST_ROWS).map((each) => this.row(each)));
    this.more.hidden = rows.length > 0 && rows.length <= MOST_ROWS;
    this.more.textContent = rows.length ? `${rows.length - MOST_ROWS} more; search for them.` : "No such case.";
    this.left.hidden = !left;
    this.left.textContent = left === 1 ? "1 label file beside its image is left out." : `${left} label files beside their images are left out.`;
    this.unread.hidden = !unread;
    this.unread.textContent = `${unread} that cannot be read ${unread === 1 ? "is" : "are"} left out.`;
    this.counts.textContent = `${counts.accepted} of ${cases.length} accepted`;
    this.list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
    if (focused) [...this.list.querySelectorAll("button")].find((each) => each.dataset.case === focused)?.focus();
    for (const button of this.buttons.children) button.disabled = !this.current;
  }

  row(each) {
    const bad = each.missing ? "The file is not there any more" : each.problem;
    const told = [each.state, each.who, formatWhen(each.changed)].filter(Boolean).join(" · ");
    return h(
      "li",
      {},
      h(
        `button.case`,
        {
          type: "button", "data-case": each.name, "data-state": each.state, title: [each.name, told, bad].filter(Boolean).join("\n"),
          "aria-current": each.name === this.current ? "true" : null, onclick: () => this.openCase(each.name),
        },
        h("span.mark", { "aria-hidden": "true", text: MARKS[each.state] }),
        h("span.what", {}, h("span.name", { text: each.name }), h("small", { text: told })),
        bad ? h("span.alert", {}, icon("warning")) : null,
      ),
    );
  }

  /** Arrows go from row to row. */
  walk(event) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const buttons = [...this.list.querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + by]?.focus();
  }
}
