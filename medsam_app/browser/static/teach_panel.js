/** Teaching an adapter on the accepted cases: a button, how far it is, and whether the result is used. */

import { h, icon } from "./dom.js";

/** Milliseconds between looks while something is under way. */
const LOOK = 3000;
const RUNNING = ["teaching", "measuring"];

export class TeachPanel {
  /** @param {import("./worklist.js").Worklist} worklist */
  constructor(worklist) {
    this.worklist = worklist;
    this.said = null;
    this.brief = h("small", {});
    this.text = h("p", { role: "status", "data-id": "teach-said" });
    this.using = h("p.hint", { "data-id": "teach-using" });
    this.minutes = h("input.number", { type: "text", inputmode: "numeric", value: "20", "aria-label": "Minutes of teaching", "data-id": "teach-minutes" });
    this.bar = h("div.fill");
    this.track = h("div.track", { role: "progressbar", "aria-label": "Teaching", hidden: true }, this.bar);
    const button = (what, text, kind = "small") => h(`button.${kind}`, { type: "button", "data-id": `teach-${what}`, text, onclick: () => this.do(what) });
    this.length = h("label.line", {}, h("span", { text: "Minutes" }), this.minutes);
    this.start = button("start", "Teach", "primary");
    this.resume = button("resume", "Go on");
    this.cancel = button("cancel", "Stop");
    this.use = button("use", "Use it", "primary");
    this.drop = button("drop", "Use it no more");
    this.log = h("pre", { hidden: true, "data-id": "teach-log", tabIndex: 0, "aria-label": "What the teaching says" });
    this.showLog = h("button.small", { type: "button", "data-id": "teach-show-log", text: "Log", "aria-expanded": "false", onclick: () => this.toggleLog() });
    this.element = h(
      "details.teach",
      { ontoggle: () => this.load() },
      h("summary", { "data-id": "teach" }, icon("teach"), h("span", { text: "Teach" }), this.brief),
      this.text, this.using, this.track,
      h("div.line", {}, this.length, this.start, this.use, this.resume, this.cancel, this.drop, this.showLog),
      this.log,
    );
  }

  /** Ask how it stands; again soon while it runs. */
  async load() {
    clearTimeout(this.timer);
    if (!this.worklist.where) return;
    const log = !this.log.hidden && this.element.open;
    this.take(await this.worklist.ask("worklist/teaching", this.worklist.where, { log }).catch(() => this.said));
  }

  take(said) {
    this.said = said;
    this.draw();
    clearTimeout(this.timer);
    if (RUNNING.includes(said?.stage)) this.timer = setTimeout(() => this.load(), LOOK);
  }

  /** @param {"start"|"cancel"|"resume"|"use"|"drop"} what */
  async do(what) {
    const { viewer, where } = this.worklist;
    const minutes = Number(this.minutes.value);
    if (what === "start" && !(minutes > 0)) return viewer.toasts.show(`Minutes are a number above 0; got '${this.minutes.value}'.`, "warning");
    return viewer.guard(async () => {
      this.take(await this.worklist.ask("worklist/teach", { ...where, what, minutes: what === "start" ? minutes : 20 }));
      if (what === "use") viewer.toasts.show("New cases begin with what the new adapter finds.");
    });
  }

  toggleLog() {
    this.log.hidden = !this.log.hidden;
    this.showLog.setAttribute("aria-expanded", String(!this.log.hidden));
    this.load();
  }

  draw() {
    const { said } = this;
    if (!said) return;
    const { stage } = said;
    const running = RUNNING.includes(stage);
    const percent = Math.round(100 * said.progress);
    const words = { teaching: `Teaching, ${percent} %`, measuring: "Measuring on cases kept apart", offered: "Offered", "no better": "Not better", failed: "Failed", cancelled: "Stopped", interrupted: "Interrupted" };
    this.brief.textContent = words[stage] ?? `${said.usable} to learn from`;
    const few = said.usable < said.fewest;
    const aside = this.worklist.data.counts.accepted > said.usable ? " Single series or frames of a file are not learned from." : "";
    const begin = few ? `It takes ${said.fewest} accepted cases; there are ${said.usable}.${aside}` : `${said.usable} accepted cases to learn from; some are kept apart to measure on.`;
    this.text.textContent = running ? `${words[stage]}. You may go on, or close the page.` : said.message || begin;
    this.using.textContent = said.in_use ? `In use: ${said.in_use}` : "";
    this.using.hidden = !said.in_use;
    this.track.hidden = !running;
    this.bar.classList.toggle("unknown", stage === "measuring");
    this.bar.style.width = stage === "measuring" ? "" : `${percent}%`;
    this.track.setAttribute("aria-valuenow", String(percent));
    this.length.hidden = this.start.hidden = running;
    this.start.disabled = few;
    this.use.hidden = stage !== "offered" || said.used;
    this.cancel.hidden = !running;
    this.resume.hidden = !["cancelled", "interrupted"].includes(stage);
    this.drop.hidden = !said.in_use;
    this.showLog.hidden = !stage;
    if (said.log !== null) this.log.textContent = said.log;
    this.log.scrollTop = this.log.scrollHeight;
  }
}
