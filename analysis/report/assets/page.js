// Makes each heading of a table marked data-sortable a button that sorts by its column, and keeps
// the Tab key from boxes that have nothing to scroll. Without it the page is complete.
(() => {
  "use strict";
  const said = document.getElementById("said");
  const words = new Intl.Collator("en", { numeric: true });

  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const missing = (value) => value === "" || value === "\u2013";

  const sort = (table, header, down) => {
    const body = table.tBodies[0];
    const column = header.cellIndex;
    const sign = down ? -1 : 1;
    const rows = Array.from(body.rows, (row) => [key(row, column), row]);
    rows.sort(([a], [b]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      if (typeof a === "number" && typeof b === "number") return sign * (a - b);
      return sign * words.compare(String(a), String(b));
    });
    body.append(...rows.map(([, row]) => row));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    said.textContent =
      `${table.caption.textContent.trim()}: sorted by ${header.textContent.trim()}, ` +
      (down ? "descending" : "ascending");
  };

  // Only what scrolls is a stop for the Tab key.
  const sizes = new ResizeObserver((changed) => {
    for (const { target: box } of changed) {
      const more = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
      if (more) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  });
  for (const box of document.querySelectorAll(".scroll, pre")) sizes.observe(box);

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    for (const header of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () =>
        sort(table, header, header.getAttribute("aria-sort") === "ascending"));
    }
  }
})();
