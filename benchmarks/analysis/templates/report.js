"use strict";
(() => {
  // The number that a cell starts with; cells like "n/a" have none and come last in either order.
  const numberIn = (text) => {
    const match = /[-+−]?\d+(\.\d+)?/.exec(text);
    return match ? Number(match[0].replace("−", "-").replace("+", "")) : NaN;
  };

  const compare = (first, second, descending) => {
    if (typeof first === "string") return (descending ? -1 : 1) * first.localeCompare(second, "en", { numeric: true });
    if (Number.isNaN(first) || Number.isNaN(second)) return Number.isNaN(first) - Number.isNaN(second);
    return descending ? second - first : first - second;
  };

  const sortBy = (table, heading) => {
    const column = heading.cellIndex;
    const words = heading.classList.contains("word");
    // Numbers start with the largest, words with the first letter; the next press turns the order round.
    const before = heading.getAttribute("aria-sort");
    const descending = before === "none" ? !words : before === "ascending";
    const body = table.tBodies[0];
    const valueOf = (row) => {
      const text = row.cells[column].textContent;
      return words ? text : numberIn(text);
    };
    const rows = Array.from(body.rows, (row) => [valueOf(row), row]);
    rows.sort((first, second) => compare(first[0], second[0], descending));
    body.append(...rows.map(([, row]) => row));
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };

  const filter = (figure) => {
    const wanted = figure.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = Array.from(figure.querySelector("tbody").rows);
    let shown = 0;
    for (const row of rows) {
      const text = Array.from(row.cells, (cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    figure.querySelector("output").textContent = wanted.length ? `${shown} of ${rows.length}` : "";
  };

  for (const figure of document.querySelectorAll("figure.table")) {
    const table = figure.querySelector("table");
    for (const heading of table.tHead.rows[0].cells) {
      heading.querySelector("button").addEventListener("click", () => sortBy(table, heading));
    }
    const box = figure.querySelector("input");
    box.addEventListener("input", () => filter(figure));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        box.value = "";
        filter(figure);
      }
    });
  }
})();
