"use strict";

// Numbers sort as numbers and before texts; rows without a value always come last.
function compareKeys(a, b) {
  if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
  const x = Number(a), y = Number(b);
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return a.localeCompare(b, "en", { numeric: true });
}

function keyOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.key ?? cell.textContent;
}

function sortBy(table, head) {
  const descending = head.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  rows.sort((a, b) => {
    const x = keyOf(a, head.cellIndex), y = keyOf(b, head.cellIndex);
    return x === "" || y === "" || !descending ? compareKeys(x, y) : compareKeys(y, x);
  });
  body.append(...rows);
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

function filterRows(table, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of table.tBodies[0].rows) {
    const content = (row.textContent + " " + row.dataset.record).toLowerCase();
    row.hidden = !words.every((word) => content.includes(word));
  }
}

function showRecords(section, names) {
  let first = null;
  for (const row of section.querySelectorAll("tr[data-record]")) {
    const named = names.includes(row.dataset.record);
    row.classList.toggle("marked", named);
    if (named && first === null) first = row;
  }
  if (first !== null) first.scrollIntoView({ behavior: "smooth", block: "center" });
}

for (const section of document.querySelectorAll("section")) {
  const table = section.querySelector("table.records");
  for (const head of table.tHead.rows[0].cells) {
    head.tabIndex = 0;
    head.addEventListener("click", () => sortBy(table, head));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sortBy(table, head); });
  }
  section.querySelector(".filter").addEventListener("input", (event) => filterRows(table, event.target.value));
  for (const point of section.querySelectorAll("[data-records]"))
    point.addEventListener("click", () => showRecords(section, point.dataset.records.split(" ")));
}
