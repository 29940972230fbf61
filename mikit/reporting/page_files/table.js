// The table of all rows: filters, sorting, pages, and download of the filtered rows as CSV.
const PAGE = 100;
const collator = new Intl.Collator("en", { numeric: true });
const field = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replace(/"/g, '""')}"` : cell);

function setUpTable(columns) {
  if (!columns.length || !columns[0].values.length) return;
  const rows = columns[0].values.map((_, i) => columns.map(({ values, words }) =>
    words === undefined ? values[i] : values[i] < 0 ? null : words[values[i]]));
  let joined = null;
  // The text for the search takes time and memory for large flows, so it is made at the first search.
  const text = () => (joined ??= rows.map((row) => row.map((cell) => (cell === null ? "" : String(cell))).join(" ").toLowerCase()));
  const [head, body] = [find("table").tHead, find("table").tBodies[0]];
  const chosen = new Map();
  let order = rows.map((_, i) => i), sorted = -1, falling = false, kept = order, page = 0, everything = false;

  const count = (number) => number.toLocaleString("en");
  function compare(a, b) {
    const [x, y] = [rows[a][sorted], rows[b][sorted]];
    const [emptyX, emptyY] = [x === null || x === "", y === null || y === ""];
    if (emptyX || emptyY) return emptyX - emptyY || a - b;
    const way = typeof x === "number" && typeof y === "number" ? x - y : collator.compare(String(x), String(y));
    return (falling ? -way : way) || a - b;
  }

  function filter() {
    const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const picks = [...chosen].filter(([, value]) => value !== "");
    kept = order.filter((i) =>
      picks.every(([column, value]) => String(rows[i][column]) === value) && words.every((word) => text()[i].includes(word)));
    page = 0;
    draw();
  }

  function sort(column) {
    falling = sorted === column ? !falling : false;
    sorted = column;
    order = rows.map((_, i) => i).sort(compare);
    [...head.rows[0].cells].forEach((cell, i) =>
      cell.setAttribute("aria-sort", i !== column ? "none" : falling ? "descending" : "ascending"));
    filter();
  }

  function draw() {
    const [first, last] = everything ? [0, kept.length] : [page * PAGE, Math.min((page + 1) * PAGE, kept.length)];
    const lines = document.createDocumentFragment();
    for (const i of kept.slice(first, last)) {
      const line = make("tr");
      rows[i].forEach((value, column) => {
        const cell = make("td", shape(value));
        if (columns[column].number) cell.className = "number";
        else if (columns[column].key === "verdict") cell.className = `verdict-${String(value).replace(/\W/g, "")}`;
        if (typeof value === "string" && value.length > 40) cell.title = value;
        line.append(cell);
      });
      lines.append(line);
    }
    body.replaceChildren(lines);
    find("shown").textContent = kept.length
      ? `Rows ${count(first + 1)} to ${count(last)} of ${count(kept.length)}`
        + (kept.length < rows.length ? ` (${count(rows.length)} without filter)` : "")
      : `None of the ${count(rows.length)} rows matches the filter`;
    find("previous").disabled = everything || page === 0;
    find("next").disabled = everything || last >= kept.length;
  }

  const titles = head.insertRow();
  columns.forEach((column, i) => {
    const cell = make("th"), button = make("button", column.name);
    cell.scope = "col";
    cell.setAttribute("aria-sort", "none");
    if (column.number) cell.className = "number";
    button.type = "button";
    button.addEventListener("click", () => sort(i));
    cell.append(button);
    titles.append(cell);
  });
  columns.forEach((column, i) => {
    if (!["network", "quantity", "phase", "layer", "verdict"].includes(column.key)) return;
    const label = make("label", column.name), select = make("select");
    select.append(make("option", "all"));
    select.options[0].value = "";
    const values = [...new Set(rows.map((row) => row[i]))].filter((value) => value !== null && value !== "");
    values.sort((a, b) => collator.compare(String(a), String(b)));
    for (const value of values) {
      const option = make("option", String(value));
      option.value = String(value);
      select.append(option);
    }
    select.addEventListener("change", () => { chosen.set(i, select.value); filter(); });
    label.append(select);
    find("choices").append(label);
  });
  find("search").addEventListener("input", filter);
  find("previous").addEventListener("click", () => { page -= 1; draw(); });
  find("next").addEventListener("click", () => { page += 1; draw(); });
  find("everything").addEventListener("click", (event) => {
    everything = !everything;
    page = 0;
    event.target.setAttribute("aria-pressed", String(everything));
    event.target.textContent = everything ? "Show pages" : "Show all";
    draw();
  });
  find("download").addEventListener("click", () => {
    const lines = [columns.map(({ key }) => field(key)), ...kept.map((i) => rows[i].map((cell) => (cell === null ? "" : field(String(cell)))))];
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([lines.map((line) => line.join(",")).join("\r\n"), "\r\n"], { type: "text/csv" }));
    link.download = "flow-rows.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  find("controls").hidden = false;
  draw();
}
