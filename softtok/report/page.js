// Sorting, filtering and looking closely at the tables of a report. Without it, the page reads as it stands.
(() => {
  "use strict";
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const make = (tag, settings = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), settings);
    node.append(...children);
    return node;
  };

  // Sorting: a click on a column's head orders its lines, highest first, then lowest, then as they were.
  const numberOf = (cell) => {
    const value = parseFloat(cell.dataset.value ?? cell.textContent.replace("−", "-"));
    return Number.isNaN(value) ? null : value;
  };
  const cellsOf = (row) => all(":scope > *", row.querySelector("tr.main"));
  const placed = (row, place) => {
    let at = 0;
    for (const cell of cellsOf(row)) {
      if (at === place) return cell;
      at += cell.colSpan;
    }
    return null;
  };
  const compare = (place, way) => (one, other) => {
    const [a, b] = [placed(one, place), placed(other, place)];
    const [x, y] = [numberOf(a), numberOf(b)];
    if (x === null && y === null) return way * b.textContent.localeCompare(a.textContent);
    if (x === null || y === null) return x === null ? 1 : -1;
    return way * (y - x);
  };
  for (const table of all("table.results:not(.questions):not(.costs)")) {
    const rows = all("tbody.row", table);
    let at = 0;
    for (const head of all("thead tr:last-child th", table)) {
      const place = at;
      at += head.colSpan;
      const button = make("button", { type: "button", className: "sort", textContent: head.textContent });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const next = { descending: "ascending", ascending: null }[head.ariaSort] ?? (head.ariaSort ? null : "descending");
        for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
        if (next) head.setAttribute("aria-sort", next);
        const way = next === "descending" ? 1 : -1;
        table.append(...(next ? [...rows].sort(compare(place, way)) : rows));
      });
    }
  }

  // Filtering: by model, train set and training mode, in all tables at once.
  const lines = all("tbody.row");
  const distinct = (key) => [...new Set(lines.map((row) => row.dataset[key]))].filter((name) => name !== "none");
  const names = { model: "model", train: "trained on", mode: "training mode" };
  const chosen = {};
  const show = () => {
    for (const row of lines) {
      const { model, train, mode } = row.dataset;
      const fits = (key, value) => !chosen[key] || chosen[key] === value;
      row.hidden = !(fits("model", model) && (train === "none" || fits("train", train)) && (!chosen.mode || mode === "base" || fits("mode", mode)));
    }
  };
  const tools = make("div", { className: "tools", role: "group", ariaLabel: "What the tables show" });
  for (const [key, label] of Object.entries(names)) {
    const values = distinct(key);
    if (values.length < 2) continue;
    const select = make("select", { name: key }, make("option", { value: "", textContent: "all" }));
    select.append(...values.map((value) => make("option", { value, textContent: value })));
    select.addEventListener("change", () => { chosen[key] = select.value; show(); });
    tools.append(make("label", {}, label, select));
  }
  const kinds = { "minus-hard": "minus hard", "minus-base": "minus base", paper: "the paper's numbers" };
  for (const [kind, label] of Object.entries(kinds)) {
    const below = all(`tr.${kind}`);
    if (!below.length) continue;
    const box = make("input", { type: "checkbox", name: kind, checked: !below[0].hidden });
    box.addEventListener("change", () => { for (const row of below) row.hidden = !box.checked; });
    tools.append(make("label", {}, box, label));
  }
  const folds = all("details.fold");
  const unfold = make("button", { type: "button", textContent: "unfold all sections" });
  unfold.addEventListener("click", () => {
    const open = folds.some((fold) => !fold.open);
    for (const fold of folds) fold.open = open;
    unfold.textContent = open ? "fold all sections" : "unfold all sections";
  });
  tools.append(unfold);
  (document.querySelector("#headline .scroll") ?? document.querySelector("main section")).before(tools);

  // A closer look: the seeds behind a number, by mouse, touch or the arrow keys.
  const tip = make("div", { id: "tip", role: "status", hidden: true });
  document.body.append(tip);
  const open = (cell) => {
    tip.textContent = cell.dataset.tip;
    tip.hidden = false;
    const box = cell.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 4))}px`;
    const above = box.top - tip.offsetHeight - 6;
    tip.style.top = `${above > 0 ? above : box.bottom + 6}px`;
  };
  const close = () => { tip.hidden = true; };
  const tipped = (event) => event.target.closest?.("[data-tip]");
  document.addEventListener("mouseover", (event) => (tipped(event) ? open(tipped(event)) : close()));
  document.addEventListener("focusin", (event) => (tipped(event) ? open(tipped(event)) : close()));
  document.addEventListener("focusout", close);
  document.addEventListener("click", (event) => tipped(event) && open(tipped(event)));
  document.addEventListener("scroll", close, true);
  for (const table of all("table.results")) {
    const first = table.querySelector("td.mean[data-tip]");
    if (first) first.tabIndex = 0;
  }
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    const cell = event.target.closest?.("td.mean[data-tip]");
    if (!cell || !moves[event.key]) return;
    const grid = all("tbody.row:not([hidden]) tr.main", cell.closest("table")).map((row) => all("td.mean", row));
    const row = grid.findIndex((cells) => cells.includes(cell));
    const [down, right] = moves[event.key];
    const next = grid[row + down]?.[grid[row].indexOf(cell) + right];
    if (!next?.dataset.tip) return;
    event.preventDefault();
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  // A link into a folded section unfolds it, and so does printing.
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let node = target; node; node = node.parentElement) if (node.matches("details")) node.open = true;
    const first = target.matches("section") && target.querySelector("details");
    if (first) first.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  for (const link of all('a[href^="#"]')) link.addEventListener("click", () => setTimeout(reveal));
  reveal();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    for (const fold of closed) fold.open = true;
  });
  addEventListener("afterprint", () => { for (const fold of closed) fold.open = false; });
})();
