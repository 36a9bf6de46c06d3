/* A table whose rows stay the same elements while their content changes, so that focus and selection stay where they are. */

import { make, setText } from "./dom.js";

/*
 * `columns`: `{ title, value(row), show?(row), fill?(cell, row), number?, wide? }`. `value` is what is sorted by and shown;
 * `show` is the text if that is another; `fill` fills the cell itself, each time.
 * `key(row)` names a row; `open(row)`, if given, is called when a row is chosen.
 */
export function table({ caption, columns, key, open, empty, sort = 0, descending = false }) {
  const rows = new Map();
  const order = { column: sort, descending };
  const heads = columns.map((column, index) => {
    const button = make("button", { type: "button", className: "sort", on: { click: () => sortBy(index) } }, column.title);
    return make("th", { scope: "col", className: column.number ? "number" : "" }, button);
  });
  const body = make("tbody");
  const none = make("p", { className: "empty", hidden: true }, empty || "Nothing here.");
  const grid = make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heads)), body);
  const element = make("div", { className: "table", tabIndex: 0, role: "region", "aria-label": caption }, grid, none);
  let last = [];

  function sortBy(index) {
    order.descending = order.column === index ? !order.descending : Boolean(columns[index].number);
    order.column = index;
    update(last);
  }

  function row(item) {
    const name = key(item);
    let known = rows.get(name);
    if (!known) {
      const cells = columns.map((column) => make("td", { className: (column.number ? "number " : "") + (column.wide ? "wide" : "") }));
      const line = make("tr", {}, ...cells);
      known = { line, cells, item };
      if (open) {
        line.tabIndex = 0;
        line.classList.add("open");
        line.addEventListener("click", (event) => { if (!event.target.closest("button, a")) open(known.item); });
        line.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target === line) open(known.item); });
      }
      rows.set(name, known);
    }
    known.item = item;
    columns.forEach((column, index) => {
      if (column.fill) column.fill(known.cells[index], item);
      else setText(known.cells[index], String((column.show || column.value)(item) ?? "-"));
    });
    return known.line;
  }

  function update(items) {
    last = items;
    const { value } = columns[order.column];
    const compare = (a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === right) return 0;
      if (left === null || left === undefined) return 1;
      if (right === null || right === undefined) return -1;
      return left < right ? -1 : 1;
    };
    const sorted = [...items].sort((a, b) => (order.descending ? -compare(a, b) : compare(a, b)));
    heads.forEach((head, index) => {
      if (index !== order.column) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    });
    const lines = sorted.map(row);
    const wanted = new Set(sorted.map(key));
    for (const [name, { line }] of rows) {
      if (wanted.has(name)) continue;
      line.remove();
      rows.delete(name);
    }
    lines.forEach((line, index) => {
      if (body.children[index] !== line) body.insertBefore(line, body.children[index] || null);
    });
    none.hidden = lines.length > 0;
    grid.hidden = lines.length === 0;
  }

  return { element, update };
}
