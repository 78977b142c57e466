/** Panel for finetuning an adapter on the accepted cases: start, progress, and use of the result. */

import { h, icon } from "./dom.js";

/** Milliseconds between status requests while a job is running. */
const POLL_INTERVAL = 3000;
const RUNNING = ["teaching", "measuring"];

export class TeachPanel {
  /** @param {import("./worklist.js").Worklist} worklist */
  constructor(worklist) {
    this.worklist = worklist;
    this.status = null;
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

  /** Request the status; repeated while a job is running. */
  async load() {
    clearTimeout(this.timer);
    if (!this.worklist.where) return;
    const log = !this.log.hidden && this.element.open;
    this.take(await this.worklist.ask("worklist/teaching", this.worklist.where, { log }).catch(() => this.status));
  }

  take(status) {
    this.status = status;
    this.draw();
    clearTimeout(this.timer);
    if (RUNNING.includes(status?.stage)) this.timer = setTimeout(() => this.load(), POLL_INTERVAL);
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
    const { status } = this;
    if (!status) return;
    const { stage } = status;
    const running = RUNNING.includes(stage);
    const percent = Math.round(100 * status.progress);
    const words = { teaching: `Teaching, ${percent} %`, measuring: "Measuring on cases kept apart", offered: "Offered", "no better": "Not better", failed: "Failed", cancelled: "Stopped", interrupted: "Interrupted" };
    this.brief.textContent = words[stage] ?? `${status.usable} to learn from`;
    const tooFew = status.usable < status.fewest;
    const note = this.worklist.data.counts.accepted > status.usable ? " Single series or frames of a file are not learned from." : "";
    const introduction = tooFew ? `It takes ${status.fewest} accepted cases; there are ${status.usable}.${note}` : `${status.usable} accepted cases to learn from; some are kept apart to measure on.`;
    this.text.textContent = running ? `${words[stage]}. You may go on, or close the page.` : status.message || introduction;
    this.using.textContent = status.in_use ? `In use: ${status.in_use}` : "";
    this.using.hidden = !status.in_use;
    this.track.hidden = !running;
    this.bar.classList.toggle("unknown", stage === "measuring");
    this.bar.style.width = stage === "measuring" ? "" : `${percent}%`;
    this.track.setAttribute("aria-valuenow", String(percent));
    this.length.hidden = this.start.hidden = running;
    this.start.disabled = tooFew;
    this.use.hidden = stage !== "offered" || status.used;
    this.cancel.hidden = !running;
    this.resume.hidden = !["cancelled", "interrupted"].includes(stage);
    this.drop.hidden = !status.in_use;
    this.showLog.hidden = !stage;
    if (status.log !== null) this.log.textContent = status.log;
    this.log.scrollTop = this.log.scrollHeight;
  }
}
