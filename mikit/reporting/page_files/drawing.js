// Builders of figures. Each returns Plotly's traces and layout, and `cells`: the grid through which the arrow keys move.
const TICK = 11;
const suffix = (n) => (n === 0 ? "" : String(n + 1));
// On a touch screen, dragging over a figure scrolls the page instead of zooming.
const touch = matchMedia("(pointer: touch)").matches;

function blank(ink, height, top) {
  return {
    paper_bgcolor: ink.paper, plot_bgcolor: ink.paper, height, autosize: true, hovermode: "closest",
    dragmode: touch ? false : "zoom", font: { color: ink.ink, size: 12, family: "system-ui, sans-serif" },
    margin: { l: 58, r: 14, t: top, b: 20 }, shapes: [], annotations: [],
    hoverlabel: { align: "left", bgcolor: ink.shade, bordercolor: ink.soft, font: { color: ink.ink, size: 12 } },
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1, yanchor: "top", yref: "container", itemclick: false,
      itemdoubleclick: false, tracegroupgap: 0, font: { size: 11.5 }, bgcolor: "rgba(0,0,0,0)" },
  };
}

// Height of the legend above the panels, from the widths of its entries.
function legendHeight(names, width) {
  // Plotly places the legend only while drawing, and the height is needed before; 6.9 pixels is a mean letter.
  let lines = 1, used = 0;
  for (const name of names) {
    const own = 6.9 * name.length + 58;
    if (used && used + own > width - 20) { lines += 1; used = 0; }
    used += own;
  }
  return 12 + 21 * lines;
}

// A grid of panels that fits the width. Sizes are in pixels here and fractions of the plot in Plotly.
function panels(count, width, least, high, below, left = 58, between = 34) {
  const room = width - left - 14;
  const columns = Math.max(1, Math.min(count, Math.floor((room + between) / (least + between))));
  const rows = Math.ceil(count / columns);
  const wide = Math.min((room - between * (columns - 1)) / columns, Math.max(least * 2.2, 460));
  const total = rows * high + (rows - 1) * (below + 26);
  const places = [...Array(count).keys()].map((i) => {
    const column = i % columns, row = Math.floor(i / columns);
    const begin = column * (wide + between), end = total - row * (high + below + 26);
    return { x: [begin / room, (begin + wide) / room], y: [Math.max(0, (end - high) / total), end / total], column, row };
  });
  return { places, total, wide, rows, columns };
}

const title = (text, place, ink, size) => ({ text: inert(clip(text, size)), showarrow: false, xref: "paper", yref: "paper",
  x: place.x[0], xanchor: "left", y: place.y[1], yanchor: "bottom", font: { size: 12, color: ink.ink } });

const axisOf = (ink, domain, more) => ({ domain, gridcolor: ink.line, linecolor: ink.soft, zeroline: false,
  ticks: "outside", ticklen: 3, tickcolor: ink.soft, tickfont: { size: TICK }, fixedrange: false, ...more });

// A band over the seeds, and the line with its points; hollow points have the verdict unreliable.
function curve(traces, x, values, look) {
  const { color, axes, name, legend, texts } = look;
  const seen = x.map((_, i) => i).filter((i) => values.smallest[i] !== null);
  if (values.count.some((n) => n > 1) && seen.length > 1) {
    const back = [...seen].reverse();
    traces.push({ type: "scatter", mode: "lines", x: [...seen, ...back].map((i) => x[i]), ...axes, hoverinfo: "skip",
      y: [...seen.map((i) => values.smallest[i]), ...back.map((i) => values.largest[i])], fill: "toself",
      fillcolor: veil(color, look.dark ? 0.32 : 0.2), line: { width: 0 }, showlegend: false });
  }
  // One seed has no spread: its sampling intervals are drawn as error bars instead of a band.
  const single = values.count.every((n) => n < 2) && values.low.some((low) => low !== null);
  traces.push({ type: "scatter", mode: "lines+markers", x, y: values.mean, ...axes, name, showlegend: legend,
    legendgroup: name, connectgaps: look.connect, hovertext: texts, hoverinfo: "text",
    line: { color, width: 2 }, marker: { size: look.symbols ? look.symbols.map((symbol) => (symbol === "circle" ? 6 : 9)) : 6, symbol: look.symbols ?? "circle",
      color: values.verdict.map((code) => (code === 3 ? look.paper : color)), line: { color, width: 1.5 } },
    ...(single ? { error_y: { type: "data", symmetric: false, thickness: 1, width: 2, color,
      array: values.mean.map((mean, i) => (values.high[i] === null || mean === null ? 0 : values.high[i] - mean)),
      arrayminus: values.mean.map((mean, i) => (values.low[i] === null || mean === null ? 0 : mean - values.low[i])) } } : {}) });
  return traces.length - 1;
}

const plain = (x, y, color, dash, width, axes, name, legend) => ({ type: "scatter", mode: "lines", x, y, ...axes, name,
  showlegend: legend, line: { color, dash, width }, hoverinfo: "skip", connectgaps: true });

// As many phases as fit under a panel, always with the last.
function phaseTicks(data, wide) {
  const last = data.phases.length - 1, own = 8 + 6.5 * Math.max(...data.phases.map((phase) => String(phase).length));
  const every = Math.ceil((last + 1) / Math.max(2, Math.floor(wide / own)));
  return data.phases.map((_, i) => i).filter((i) => (last - i) % every === 0);
}

// Colors of the maps (viridis, dark to light), and the legible text color on each: the one with more contrast by WCAG.
const STOPS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const FIFTHS = [0, 0.2, 0.4, 0.6, 0.8];
const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
function blend(stops, share) {
  const place = Math.min(1, Math.max(0, share)) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2), high = channels(stops[low + 1]);
  return channels(stops[low]).map((value, i) => value + (high[i] - value) * (place - low));
}
const luminance = (rgb) => rgb.map((value) => value / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const legible = (rgb) => (1.05 / (luminance(rgb) + 0.05) >= (luminance(rgb) + 0.05) / 0.05 ? "#ffffff" : "#000000");

// Numbers in the cells of a map, each in the color that is legible on its cell.
const numbersOn = (n, rows, columns, text, color) => {
  const spots = rows.flatMap((i) => columns.map((j) => [i, j])).filter(([i, j]) => text(i, j));
  return { type: "scatter", mode: "text", x: spots.map(([, j]) => j), y: spots.map(([i]) => i), xaxis: `x${suffix(n)}`, yaxis: `y${suffix(n)}`, hoverinfo: "skip",
    showlegend: false, cliponaxis: false, text: spots.map(([i, j]) => text(i, j)), textfont: { size: 10.5, color: spots.map(([i, j]) => color(i, j)) } };
};

const FIELDS = ["mean", "smallest", "largest", "low", "high", "verdict", "count"];
const pick = (part, spots) => Object.fromEntries(FIELDS.map((name) => [name, spots.map((spot) => part[name][spot])]));
const spotOf = (part, phase, i, j) => (phase * part.layers.length + i) * part.others.length + j;
const unitOf = (data, chart) => ({ nats: "nats", bits: "bits", share: "0 to 1", fraction: "fraction" })[data.quantities[chart.quantity].unit];

// Data-processing flags: a cross if any seed is impossible, a triangle if every seed rises with depth.
const symbolOf = (part, spot) => (part.impossible[spot] > 0 ? "x" : part.rises[spot] > 0 && part.rises[spot] >= part.count[spot] ? "triangle-up" : "circle");

function alongLayers(data, chart, level, parts, state, width, ink) {
  const traces = [], cells = [], axes = { xaxis: "x", yaxis: "y" }, flagged = new Set();
  const names = parts.map((part) => clip(data.networks[part.network].name, 34));
  const last = level.ticks.length - 1;
  for (const [k, part] of parts.entries()) {
    const color = ink.network(data.networks[part.network].color);
    const spots = part.layers.map((_, i) => spotOf(part, state.phase, i, 0));
    const lines = spots.map((spot, i) => pointText(data, chart.quantity, level, part, spot, state.phase, part.layers[i], ""));
    const floor = spots.map((spot) => part.untrained[spot]);
    if (floor.some((value) => value !== null)) traces.push(plain(part.x, floor, color, "dot", 1.2, axes, "", false));
    const symbols = chart.quantity === "label_information" ? spots.map((spot) => symbolOf(part, spot)) : undefined;
    for (const symbol of symbols ?? []) flagged.add(symbol);
    const at = curve(traces, part.x, pick(part, spots), { color, axes, name: inert(names[k]), legend: true, paper: ink.paper, dark: ink.dark,
      connect: false, texts: lines.map(hover), symbols });
    cells.push(lines.map((words, i) => ({ curve: at, point: i, subplot: "xy", words })));
  }
  const keys = [...names], ends = [-0.35, last + 0.35];
  if (parts.some((part) => part.untrained.some((value) => value !== null))) {
    traces.push(plain([null], [null], ink.soft, "dot", 1.2, axes, "untrained", true));
    keys.push("untrained");
  }
  if (level.teacher && chart.quantity === "label_information") {
    traces.push({ ...plain(level.teacher.x, level.teacher.mean, ink.ink, "dash", 1.8, axes, inert(level.teacher.label), true),
      mode: "lines", hoverinfo: "text", hovertext: level.teacher.mean.map((value, i) =>
        hover([level.teacher.label, `layer ${level.teacher.layers[i]}`, `${digits(value)} ${data.quantities[chart.quantity].unit}`])) });
    keys.push(level.teacher.label);
  }
  const limits = [...level.range];
  if (chart.quantity === "label_information") {
    if (data.entropy !== null && data.quantities[chart.quantity].unit === "nats") {
      const name = `H(Y) = ${data.entropy.toFixed(2)} nats`;
      traces.push(plain(ends, [data.entropy, data.entropy], ink.soft, "dot", 1.8, axes, name, true));
      keys.push(name);
      limits[1] = Math.max(limits[1], 1.06 * data.entropy);
    }
    const nulls = level.ticks.map((_, i) => {
      const own = parts.flatMap((part) => part.x[i] === i ? [part.null[spotOf(part, state.phase, i, 0)]] : []).filter((v) => v !== null);
      return own.length ? own.reduce((a, b) => a + b) / own.length : null;
    });
    if (nulls.some((value) => value !== null)) {
      traces.push(plain(nulls.map((_, i) => i), nulls, ink.soft, "dashdot", 1.2, axes, "permuted labels (null)", true));
      limits[0] = Math.min(limits[0], ...nulls.filter((value) => value !== null)) - 0.02 * (limits[1] - limits[0]);
      keys.push("permuted labels (null)");
    }
  }
  for (const [symbol, words] of [["triangle-up", "above the previous layer"], ["x", "impossible"]]) {
    if (!flagged.has(symbol)) continue;
    traces.push({ type: "scatter", mode: "markers", x: [null], y: [null], ...axes, name: words, hoverinfo: "skip", marker: { symbol, size: 9, color: ink.soft } });
    keys.push(words);
  }
  const top = legendHeight(keys, width);
  const layout = blank(ink, 382 + top, top);
  layout.margin.b = 58;
  layout.xaxis = axisOf(ink, [0, 1], { range: ends, tickvals: level.ticks.map((_, i) => i), ticktext: level.ticks.map(inert),
    automargin: true, showgrid: false, title: { text: "layer, input to output", font: { size: 12 } } });
  layout.yaxis = axisOf(ink, [0, 1], { range: limits, title: { text: `${chart.axis} (${unitOf(data, chart)})`, font: { size: 12 } } });
  if (chart.quantity === "label_gap") {
    layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: ink.ink, width: 1 }, layer: "below" });
  }
  return { traces, layout, cells };
}

// The vertical line that marks the chosen phase, one per panel.
const cursors = (count, phase, ink) => [...Array(count).keys()].map((n) => ({ type: "line", xref: `x${suffix(n)}`,
  yref: `y${suffix(n)} domain`, x0: phase, x1: phase, y0: 0, y1: 1, line: { color: ink.soft, width: 1, dash: "dash" }, layer: "below" }));

function alongPhases(data, chart, level, parts, state, width, ink) {
  const longest = level.parts.reduce((a, b) => (b.layers.length > a.layers.length ? b : a));
  const count = longest.layers.length, traces = [];
  const cells = parts.map(() => []);
  const phases = data.phases.map((_, i) => i);
  const names = parts.map((part) => clip(data.networks[part.network].name, 34));
  const share = chart.quantity === "recovered_share";
  const plan = panels(count, width, count === 1 ? 420 : 205, count === 1 ? 300 : 165, 28);
  const keys = [...names];
  let floors = false, taught = false;
  for (let n = 0; n < count; n += 1) {
    const axes = { xaxis: `x${suffix(n)}`, yaxis: `y${suffix(n)}` };
    for (const [k, part] of parts.entries()) {
      const i = part.x.findIndex((x) => Math.abs(x - n) < 1e-9);
      if (i < 0) continue;
      const color = ink.network(data.networks[part.network].color), j = part.match[i];
      const spots = phases.map((phase) => spotOf(part, phase, i, j));
      const lines = spots.map((spot, phase) => pointText(data, chart.quantity, level, part, spot, phase, part.layers[i], part.others[j]));
      const floor = part.untrained[spots.find((spot) => part.untrained[spot] !== null)];
      if (floor !== undefined && chart.quantity !== "accuracy") {
        traces.push(plain([0, phases.length - 1], [floor, floor], color, "dot", 1.2, axes, "", false));
        floors = true;
      }
      const at = curve(traces, phases, pick(part, spots), { color, axes, name: inert(names[k]), legend: n === 0, paper: ink.paper, dark: ink.dark,
        connect: true, texts: lines.map(hover) });
      cells[k].push(...lines.map((words, point) => ({ curve: at, point, subplot: `x${suffix(n)}y${suffix(n)}`, words })));
    }
    const place = level.teacher ? level.teacher.x.findIndex((x) => Math.abs(x - n) < 0.5) : -1;
    if (place >= 0 && !share) {
      const value = level.teacher.mean[place];
      traces.push(plain([0, phases.length - 1], [value, value], ink.ink, "dash", 1.5, axes, inert(level.teacher.label), !taught));
      taught = true;
    }
  }
  if (taught) keys.push(level.teacher.label);
  if (floors) {
    traces.push(plain([null], [null], ink.soft, "dot", 1.2, { xaxis: "x", yaxis: "y" }, "untrained", true));
    keys.push("untrained");
  }
  const legend = legendHeight(keys, width), top = legend + (count > 1 ? 22 : 0);
  const layout = blank(ink, plan.total + top + 52, top);
  layout.margin.b = 52;
  const ticks = phaseTicks(data, plan.wide);
  for (const [n, spot] of plan.places.entries()) {
    const lowest = n + plan.columns >= count;
    layout[`xaxis${suffix(n)}`] = axisOf(ink, spot.x, { anchor: `y${suffix(n)}`, range: [-0.4, phases.length - 0.6], tickvals: ticks,
      ticktext: ticks.map((phase) => String(data.phases[phase])), tickangle: 0, showgrid: false,
      title: lowest ? { text: "phase (equally spaced)", font: { size: 11.5 }, standoff: 6 } : undefined });
    layout[`yaxis${suffix(n)}`] = axisOf(ink, spot.y, { anchor: `x${suffix(n)}`, range: share ? [level.range[0], Math.max(1, level.range[1])] : level.range,
      nticks: 5, showticklabels: spot.column === 0, matches: n ? "y" : undefined,
      title: spot.column === 0 ? { text: count > 1 && plan.rows > 1 ? unitOf(data, chart) : `${chart.axis} (${unitOf(data, chart)})`, font: { size: 11.5 } } : undefined });
    if (count > 1) layout.annotations.push(title(longest.layers[n], spot, ink, Math.floor(plan.wide / 7)));
  }
  layout.shapes = cursors(count, state.phase, ink);
  return { traces, layout, cells, moves: (phase) => cursors(count, phase, ink) };
}
