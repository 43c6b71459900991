"use strict";
// Theme, sorting and filtering; a page is complete without this script.

const page = { changed: [] }; // `changed`: what to do when colours change

(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");

  function kept(action) {
    try { return action(window.localStorage); } catch { return null; } // files may have no storage
  }

  function apply(name) {
    if (name) root.dataset.theme = name; else delete root.dataset.theme;
    theme.value = name;
    page.changed.forEach((act) => act());
  }

  apply(["light", "dark"].find((name) => name === kept((store) => store.getItem("moesim-theme"))) ?? "");
  theme.addEventListener("change", () => {
    kept((store) => store.setItem("moesim-theme", theme.value));
    apply(theme.value);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.changed.forEach((act) => act()));

  // A cell sorts by the number that it begins with, `1,234.5` and `-3 %` included, else by its text.
  function key(row, column) {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace(/,/g, "").replace(/^[\u2212]/, "-"));
    return { text, number: text === "-" ? 0 : number };
  }

  function compare(a, b) {
    const numbers = !Number.isNaN(a.number) && !Number.isNaN(b.number);
    return numbers ? a.number - b.number : a.text.localeCompare(b.text, undefined, { numeric: true });
  }

  function sort(table, column, head) {
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => (falling ? compare(b, a) : compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("table")) {
    [...(table.tHead?.rows[0].cells ?? [])].forEach((head, column) => {
      if (!("sort" in head.dataset)) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column, head));
      head.append(button);
    });
  }

  const plain = (text) => text.toLowerCase().replace(/\s+/g, " ").trim();
  const FEW = 5; // rows up to which nobody needs a filter

  for (const table of document.querySelectorAll("table[data-filter]")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length <= FEW) continue;
    const bar = document.createElement("div");
    const label = document.createElement("label");
    const input = document.createElement("input");
    const count = document.createElement("output");
    bar.className = "controls filter";
    input.type = "search";
    label.append(`Filter ${table.dataset.filter}`, input);
    bar.append(label, count);
    table.parentElement.before(bar);
    input.addEventListener("input", () => {
      const wanted = plain(input.value);
      let shown = 0;
      for (const row of rows) {
        row.hidden = !plain([...row.cells].map((cell) => cell.textContent).join(" ")).includes(wanted);
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = wanted ? `${shown} of ${rows.length}` : "";
    });
  }
})();
