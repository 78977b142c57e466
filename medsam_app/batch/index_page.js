"use strict";
/* The page of a batch: filters, order, keys and flags. Cards are in the page; nothing is fetched. */
(() => {
  const byId = (id) => document.getElementById(id);
  const numbers = (text) => text.split(" ").map((word) => (word === "-" ? NaN : Number(word)));
  const main = byId("cards");
  const dialog = byId("large");
  const search = byId("search");
  const sort = byId("sort");
  const order = byId("order");
  const cards = [...main.children].map((node) => ({
    node,
    name: node.dataset.case,
    kinds: node.dataset.kinds.split(" "),
    values: numbers(node.dataset.values),
    far: numbers(node.dataset.far),
    text: `${node.dataset.case} ${node.querySelector(".said")?.textContent ?? ""} ${node.querySelector(".marks")?.textContent ?? ""}`.toLowerCase(),
  }));
  let filter = "all";
  let ordered = cards;
  let shown = cards;
  let current = null;

  // Flags

  const KEY = `medsam_app flags ${location.pathname}`;
  let flags = readFlags();

  function readFlags() {
    try {
      const kept = JSON.parse(localStorage.getItem(KEY));
      return new Set(Array.isArray(kept) ? kept : []);
    } catch {
      return new Set();
    }
  }

  function toggleFlag(card) {
    if (!flags.delete(card.name)) flags.add(card.name);
    try {
      localStorage.setItem(KEY, JSON.stringify([...flags]));
    } catch {
      byId("save").title = "This browser keeps no flags for this page: save the list before you close it.";
    }
    paintFlags();
  }

  function paintFlags() {
    for (const card of cards) {
      const flagged = flags.has(card.name);
      if (card.flagged === flagged) continue;
      card.flagged = flagged;
      paintFlag(card.node, flagged);
    }
    const count = cards.filter((card) => card.flagged).length;
    byId("flags").textContent = count;
    byId("save").disabled = count === 0;
    if (dialog.open && current) paintFlag(byId("one").firstChild, current.flagged);
  }

  function paintFlag(node, flagged) {
    node.classList.toggle("flagged", flagged);
    node.querySelector("[data-action=flag]").setAttribute("aria-pressed", flagged);
  }

  /** One case a line; a control character in a name as \uXXXX, so that a line stays a line. */
  function saveFlags() {
    const plain = (name) =>
      name.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);
    const lines = cards.filter((card) => card.flagged).map((card) => `${plain(card.name)}\n`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "text/plain;charset=utf-8" }));
    link.download = "flagged.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  // What is shown, in which order

  const names = new Intl.Collator(undefined, { numeric: true });

  function arrange() {
    order.disabled = sort.value === "" || sort.value === "name";
    ordered = [...cards];
    if (sort.value === "name") ordered.sort((one, other) => names.compare(one.name, other.name));
    else if (sort.value !== "") {
      const key = (card) => (order.value === "far" ? card.far : card.values)[Number(sort.value)];
      const sign = order.value === "up" ? 1 : -1;
      ordered.sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        return Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : sign * (a - b);
      });
    }
    main.replaceChildren(...ordered.map((card) => card.node));
    show();
  }

  function show() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = ordered.filter((card) => {
      const passes = filter === "flagged" ? card.flagged : card.kinds.includes(filter);
      card.node.hidden = !(passes && words.every((word) => card.text.includes(word)));
      return !card.node.hidden;
    });
    byId("shown").textContent = `${shown.length} of ${cards.length} shown`;
  }

  // One card after the other

  function choose(card) {
    current?.node.classList.remove("current");
    current = card;
    card.node.classList.add("current");
    if (dialog.open) enlarge();
    else card.node.focus({ preventScroll: true });
    card.node.scrollIntoView({ block: "nearest" });
  }

  function move(step) {
    if (!shown.length) return;
    const at = shown.indexOf(current);
    const next = at < 0 ? 0 : at + step;
    if (next >= 0 && next < shown.length) choose(shown[next]);
  }

  const across = () => getComputedStyle(main).gridTemplateColumns.split(" ").length;

  function enlarge() {
    const copy = current.node.cloneNode(true);
    copy.hidden = false;
    copy.classList.remove("current");
    copy.removeAttribute("tabindex");
    copy.querySelector("img")?.setAttribute("loading", "eager");
    byId("one").replaceChildren(copy);
    byId("place").textContent = `${shown.indexOf(current) + 1} of ${shown.length}`;
    if (!dialog.open) dialog.showModal();
    dialog.focus();
  }

  const ACTIONS = {
    flag: () => toggleFlag(current),
    enlarge: () => (dialog.open ? dialog.close() : enlarge()),
    previous: () => move(-1),
    next: () => move(1),
    close: () => dialog.close(),
  };
  const KEYS = {
    j: () => move(1),
    k: () => move(-1),
    ArrowRight: () => move(1),
    ArrowLeft: () => move(-1),
    ArrowDown: () => move(dialog.open ? 1 : across()),
    ArrowUp: () => move(dialog.open ? -1 : -across()),
    f: () => current && toggleFlag(current),
    Enter: () => current && ACTIONS.enlarge(),
    "/": () => !dialog.open && search.focus(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select")) {
      if (event.key === "Escape" || (event.key === "Enter" && event.target === search)) event.target.blur();
      return;
    }
    if (event.key === "Enter" && event.target.closest("a, button")) return;
    const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  document.addEventListener("click", (event) => {
    const node = event.target.closest("main .card");
    if (node && !event.target.closest("a")) choose(cards.find((card) => card.node === node));
    const action = event.target.closest("[data-action]")?.dataset.action;
    if (action) ACTIONS[action]();
    const chosen = event.target.closest("[data-filter]");
    if (!chosen) return;
    filter = chosen.dataset.filter;
    for (const each of document.querySelectorAll("[data-filter]")) each.setAttribute("aria-pressed", each === chosen);
    show();
  });

  dialog.addEventListener("close", () => current?.node.focus({ preventScroll: true }));
  search.addEventListener("input", show);
  sort.addEventListener("change", arrange);
  order.addEventListener("change", arrange);
  byId("save").addEventListener("click", saveFlags);
  addEventListener("storage", (event) => {
    if (event.key !== KEY) return;
    flags = readFlags();
    paintFlags();
  });
  paintFlags();
  arrange();
})();
