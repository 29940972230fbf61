// Maps of student layers against teacher layers: one panel per network at the chosen phase, or its difference from another.
function layerMaps(data, chart, level, parts, state, width, ink) {
  const base = state.base === null ? undefined : level.parts.find((part) => part.network === state.base);
  // A difference needs the same layers on both sides.
  const same = (part) => part !== base && String(part.layers) === String(base.layers);
  const shown = base === undefined ? parts : parts.filter(same);
  const left = 24 + 6.6 * Math.max(...level.parts.flatMap((part) => part.short.map((name) => name.length)), 5);
  const high = Math.max(...level.parts.map((part) => part.layers.length), 1);
  const across = level.others.length;
  const long = 6.2 * Math.max(...level.others.map((name) => name.length));
  const least = Math.max(210, across * 30);
  // Placed without a height first: the width of a cell decides its height and whether tick labels fit horizontally.
  const roomy = panels(Math.max(shown.length, 1), width - 70, least, 60, 0, left, left);
  const cell = Math.min(38, Math.max(13, Math.floor(roomy.wide / across)));
  const upright = long > roomy.wide / across - 4;
  const below = (upright ? long * 0.72 + 16 : 20) + 26;
  const plan = panels(Math.max(shown.length, 1), width - 70, least, Math.max(110, high * cell * 0.86), below, left, left);
  const layout = blank(ink, plan.total + below + 34, 30);
  layout.margin = { l: left, r: 84, t: 30, b: below };
  const limit = base === undefined ? level.range[1] / 1.05
    : Math.max(0.05, ...shown.flatMap((part) => part.mean.map((value, spot) => Math.abs((value ?? 0) - (base.mean[spot] ?? value ?? 0)))));
  const stops = base === undefined ? STOPS : [ink.network("#b2182b"), ink.paper, ink.network("#2166ac")];
  const share = (number) => (base === undefined ? number / limit : (number / limit + 1) / 2);
  layout.coloraxis = { colorscale: stops.map((color, i) => [i / (stops.length - 1), color]), cmin: base === undefined ? 0 : -limit, cmax: limit, colorbar: { thickness: 12, len: Math.min(1, 220 / plan.total),
    lenmode: "fraction", y: 1, yanchor: "top", x: 1.01, outlinewidth: 0, tickfont: { size: TICK }, tickvals: base === undefined ? FIFTHS : undefined,
    title: { text: base === undefined ? `${chart.axis.split(" ").map(inert).join("<br>")}<br>\u00a0` : "difference<br>\u00a0", font: { size: 11 } } } };
  const traces = [], texts = [], cells = [];
  const print = plan.wide / across >= 25;
  for (const [n, part] of shown.entries()) {
    const place = plan.places[n], rows = part.layers.map((_, i) => i), columns = part.others.map((_, j) => j);
    const spot = (i, j) => spotOf(part, state.phase, i, j);
    const gain = (i, j) => {
      const [own, other] = [part.mean[spot(i, j)], base.mean[spot(i, j)]];
      return own === null || other === null ? null : own - other;
    };
    // The SD of a single run is null, so one seed never counts as clear.
    const clear = (i, j) => {
      const [a, b] = [part.sd[spot(i, j)], base.sd[spot(i, j)]];
      return a !== null && b !== null && Math.abs(gain(i, j)) > 3 * Math.sqrt((a * a + b * b) / 2);
    };
    const value = base === undefined ? (i, j) => part.mean[spot(i, j)] : gain;
    const lines = rows.map((i) => columns.map((j) => {
      const words = pointText(data, chart.quantity, level, part, spot(i, j), state.phase, part.layers[i], part.others[j]);
      if (base !== undefined) words.splice(2, 0, `${value(i, j) === null ? "no difference" : `difference ${value(i, j) > 0 ? "+" : ""}${digits(value(i, j))}`} from ${data.networks[base.network].name}`
        + `${clear(i, j) ? ", above 3 seed SD" : ""}`);
      return words;
    }));
    traces.push({ type: "heatmap", z: rows.map((i) => columns.map((j) => value(i, j))), x: columns, y: rows, xaxis: `x${suffix(n)}`,
      yaxis: `y${suffix(n)}`, coloraxis: "coloraxis", xgap: 1, ygap: 1, hovertext: lines.map((row) => row.map(hover)), hoverinfo: "text", hoverongaps: true });
    if (print) texts.push(numbersOn(n, rows, columns, (i, j) => (base === undefined || clear(i, j) ? two(value(i, j)) : ""), (i, j) => legible(blend(stops, share(value(i, j))))));
    // Every row of cells spans all panels, so that the arrow keys move from one panel to the next; networks with fewer
    // layers leave gaps.
    for (const i of rows) (cells[i] ??= [])[n * across + across - 1] = undefined;
    lines.forEach((row, i) => row.forEach((words, j) => {
      cells[i][n * across + j] = { curve: n, point: [i, j], subplot: `x${suffix(n)}y${suffix(n)}`, words };
    }));
    if (base === undefined) for (const j of columns) {
      const best = rows.reduce((a, b) => ((value(b, j) ?? -Infinity) > (value(a, j) ?? -Infinity) ? b : a), 0);
      if (value(best, j) !== null) layout.shapes.push({ type: "rect", xref: `x${suffix(n)}`, yref: `y${suffix(n)}`, x0: j - 0.5, x1: j + 0.5,
        y0: best - 0.5, y1: best + 0.5, line: { color: ink.outline, width: 2 } });
    }
    layout[`xaxis${suffix(n)}`] = axisOf(ink, place.x, { anchor: `y${suffix(n)}`, range: [-0.5, across - 0.5], showgrid: false, tickvals: columns,
      ticktext: level.others.map(inert), tickangle: upright ? -45 : 0 });
    layout[`yaxis${suffix(n)}`] = axisOf(ink, place.y, { anchor: `x${suffix(n)}`, range: [-0.5, part.layers.length - 0.5], showgrid: false, tickvals: rows,
      ticktext: part.short.map(inert) });
    const name = data.networks[part.network].name;
    const heading = base === undefined ? name : `${name} − ${data.networks[base.network].name}`;
    layout.annotations.push(title(heading, place, ink, Math.floor(plan.wide / 6.6)));
    if (n + plan.columns >= shown.length) layout.annotations.push({ text: "teacher layer", showarrow: false, xref: "paper", yref: "paper",
      x: (place.x[0] + place.x[1]) / 2, y: place.y[0], yanchor: "bottom", yshift: 6 - below, font: { size: 11.5, color: ink.ink } });
  }
  const note = base === undefined ? `Rows are student layers, columns are teacher layers. Outlined: the student layer ${chart.quantity === "cka" ? "most similar to" : "that recovers most of"} a teacher layer.`
    : "Numbers are printed only if the difference exceeds three seed SD: an exploratory criterion, not a test. Networks with other layer names are left out.";
  return { traces: [...traces, ...texts], layout, cells, note };
}
