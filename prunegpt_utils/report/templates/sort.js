// Tables of class "sortable": a click on a heading, or Enter on it, sorts by that column.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = text.replace("none", "0").match(/^(inf|[\d.,]+(e\+?\d+)?)/);  // what a cell begins with
    return number ? Number(number[0].replaceAll(",", "").replace("inf", "Infinity")) : text;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  headings.forEach((heading, column) => {
    if (heading.classList.contains("fixed")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const empty = (row) => value(row, column) === "";
      const rows = [...body.rows].sort((a, b) =>
        empty(a) !== empty(b)  // what has no value stays below
          ? empty(a) - empty(b)
          : (up ? 1 : -1) * compare(value(a, column), value(b, column)));
      body.append(...rows);
    });
  });
}
