// Matching layers: one map for each rule, and the selected teacher layers in a table.
function askMatch(data, read, figure, redraw) {
  ask(figure, "Student", read.students.map(({ network }, i) => [i, data.networks[network].name]), "student", redraw);
}

const two = (number) => (number === null ? "" : number.toFixed(2).replace(/^(-?)0\./, "$1."));

function readMatch(data, read, choice, state, width, ink) {
  const student = read.students[choice.student], { panels: shown } = student, name = data.networks[student.network].name;
  const left = 24 + 6.6 * Math.max(...shown.flatMap((panel) => panel.short.map((one) => one.length)), 5);
  // Panels are placed twice: the first time without a height, to learn the width of a cell, on which the height of the
  // cells and of the tick labels depends.
  const across = Math.max(...shown.map((panel) => panel.others.length)), high = Math.max(...shown.map((panel) => panel.layers.length));
  const long = 6.2 * Math.max(...shown.flatMap((panel) => panel.shortOthers.map((one) => one.length)));
  const least = Math.max(210, across * 30), roomy = panels(shown.length, width - 70, least, 60, 0, left, left);
  const cell = Math.min(38, Math.max(13, Math.floor(roomy.wide / across))), upright = long > roomy.wide / across - 4;
  const below = (upright ? long * 0.72 + 16 : 20) + 26, plan = panels(shown.length, width - 70, least, Math.max(110, high * cell * 0.86), below, left, left);
  const layout = blank(ink, plan.total + below + 36, 30), traces = [], texts = [], cells = [];
  layout.margin = { l: left, r: 84, t: 30, b: below + 2 };
  const print = plan.wide / across >= 25; // narrower cells cannot hold a number
  let scaled = false;
  shown.forEach((panel, n) => {
    const place = plan.places[n], rows = panel.layers.map((_, i) => i), columns = panel.others.map((_, j) => j), nats = panel.unit === "nats";
    const most = nats ? Math.max(...panel.values.flat().filter((value) => value !== null), 1e-9) : 1;
    const words = rows.map((i) => columns.map((j) => matchText(name, student, data, panel, i, j)));
    traces.push({ type: "heatmap", z: panel.values, x: columns, y: rows, xaxis: `x${suffix(n)}`, yaxis: `y${suffix(n)}`, colorscale: STOPS.map((color, i) => [i / (STOPS.length - 1), color]),
      zmin: 0, zmax: most, xgap: 1, ygap: 1, hovertext: words.map((row) => row.map(hover)), hoverinfo: "text", hoverongaps: true, showscale: !scaled && !nats,
      colorbar: { thickness: 12, len: Math.min(1, 220 / plan.total), lenmode: "fraction", y: 1, yanchor: "top", x: 1.01, outlinewidth: 0, tickvals: FIFTHS, tickfont: { size: TICK }, title: { text: "share<br>or CKA<br>\u00a0", font: { size: 11 } } } });
    scaled ||= !nats;
    if (print) texts.push(numbersOn(n, rows, columns, (i, j) => (panel.values[i][j] === null ? "" : `${panel.tied[i][j] ? "≈" : ""}${two(panel.values[i][j])}`),
      (i, j) => legible(blend(STOPS, panel.values[i][j] / most))));
    words.forEach((row, i) => row.forEach((line, j) => { (cells[i] ??= [])[n * across + j] = { curve: n, point: [i, j], subplot: `x${suffix(n)}y${suffix(n)}`, words: line }; }));
    for (const i of rows) layout.shapes.push({ type: "rect", xref: `x${suffix(n)}`, yref: `y${suffix(n)}`, x0: panel.chosen[i] - 0.5, x1: panel.chosen[i] + 0.5, y0: i - 0.5, y1: i + 0.5,
      line: { color: ink.outline, width: 2.2, dash: panel.picks[i].decision === "clear" ? "solid" : "dot" } });
    layout[`xaxis${suffix(n)}`] = axisOf(ink, place.x, { anchor: `y${suffix(n)}`, range: [-0.5, panel.others.length - 0.5], showgrid: false, tickvals: columns,
      ticktext: panel.shortOthers.map(inert), tickangle: upright ? -45 : 0 });
    layout[`yaxis${suffix(n)}`] = axisOf(ink, place.y, { anchor: `x${suffix(n)}`, range: [-0.5, panel.layers.length - 0.5], showgrid: false, tickvals: rows, ticktext: panel.short.map(inert) });
    layout.annotations.push(title(panel.title, place, ink, Math.floor(plan.wide / 6.6)));
    if (n + plan.columns >= shown.length) layout.annotations.push({ text: "teacher layer", showarrow: false, xref: "paper", yref: "paper", x: (place.x[0] + place.x[1]) / 2,
      y: place.y[0], yanchor: "bottom", yshift: 6 - below, font: { size: 11.5, color: ink.ink } });
  });
  const layers = [...new Set(shown.flatMap((panel) => panel.layers))];
  return { traces: [...traces, ...texts], layout, cells: cells.map((row) => row.filter(Boolean)), table: {
    caption: `The teacher layer that each rule selects for the layers of ${name} at phase ${student.phase}, with the margin over the runner-up`,
    head: ["student layer", ...shown.map((panel) => panel.title)],
    rows: layers.map((layer) => [layer, ...shown.map((panel) => pickText(panel, panel.picks.find((pick) => pick.layer === layer)))]) },
    facts: `${name} at phase ${student.phase}, ${shown[0].seeds > 1 ? `${shown[0].seeds} seeds` : "1 run"}. Rows are student layers, columns are teacher layers. Dotted outline: a tie, or a partner by convention. `
      + `${shown.map((panel) => `${panel.title}: ${panel.description} (numbers: ${panel.unit})`).join("; ")}. Errors of margins: ${shown[0].basis}.` };
}

// A margin with the decimals of the second digit of its error.
function within(margin, error) {
  const decimals = error > 0 ? Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(error)))) : 3;
  return `${margin.toFixed(decimals)} ± ${error === null ? "unknown" : error.toFixed(decimals)}`;
}
const plainUnit = (unit) => (unit.startsWith("nats") ? ` ${unit}` : "");

function pickText(panel, pick) {
  if (!pick) return "not matched";
  const strength = pick.share === null ? `${two(pick.value)}${plainUnit(pick.unit)}` : `share ${two(pick.share)}`;
  const after = pick.runner_up ? `${within(pick.margin, pick.standard_error)}${plainUnit(pick.unit)} ahead of ${pick.runner_up}` : "";
  return [{ text: pick.teacher_layer, mark: pick.decision }, [strength, after].filter(Boolean).join("; ")];
}

function matchText(name, student, data, panel, i, j) {
  const value = panel.values[i][j], pick = panel.picks[i], chosen = panel.chosen[i] === j;
  const behind = panel.behind[i][j];
  return [name, `layer ${panel.layers[i]}, teacher layer ${panel.others[j]}, phase ${student.phase}`, `${panel.title}: ${value === null ? "not measured" : small(value)} (${panel.unit})`,
    chosen ? `selected: ${pick.decision}${pick.runner_up ? `, ${within(pick.margin, pick.standard_error)}${plainUnit(pick.unit)} ahead of ${pick.runner_up}` : ""}`
      : behind === null ? "not compared" : `${within(behind, panel.errors[i][j])}${plainUnit(pick.unit)} behind the selected layer${panel.tied[i][j] ? ": a tie" : ""}`];
}
