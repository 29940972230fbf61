// Readings with the phases along the axis: change points, the divergence from the teacher, two students compared.
const READ = { changes: readChanges, divergence: readDivergence, paths: readPaths, match: readMatch };
const ASK = { changes: askChanges, divergence: () => {}, paths: askPaths, match: askMatch };
const small = (value) => (value === null ? "unknown" : shape(Number(value.toPrecision(3))));
const signed = (value) => (value > 0 ? `+${small(value)}` : small(value));
const unitText = (unit) => ({ nats: " nats", bits: " bits" }[unit] ?? "");
// Names of the matchings in mikit.flow.flow_divergences.
const MATCHED = { "same depth": "the same depth", nearest: "the nearest value" };
const step = (data, from, to) => `${data.phases[from]} → ${data.phases[to]}`;

// A menu above a figure. A menu with one option is not shown; its value is set all the same, since readers use it.
function ask(figure, label, options, key, redraw) {
  figure.choice[key] = options.length ? options[0][0] : null;
  if (options.length < 2) return;
  const element = make("label", label), select = make("select");
  options.forEach(([value, text]) => select.append(new Option(clip(text, 48), value)));
  select.addEventListener("change", () => { figure.choice[key] = Number(select.value); redraw(); });
  element.append(select);
  figure.choices.append(element);
  return select;
}

// Panels along the phases, one for each title.
function phasePanels(data, titles, width, ink, keys, axis) {
  const count = titles.length, plan = panels(count, width, count === 1 ? 420 : axis.least ?? 205, count === 1 ? 300 : axis.high ?? 165, 28);
  const top = legendHeight(keys, width) + (count > 1 ? 22 : 0), layout = blank(ink, plan.total + top + 56, top);
  layout.margin.b = 56;
  layout.margin.l = axis.left ?? 58;
  const phases = data.phases.map((_, i) => i), ticks = phaseTicks(data, plan.wide);
  plan.places.forEach((spot, n) => {
    layout[`xaxis${suffix(n)}`] = axisOf(ink, spot.x, { anchor: `y${suffix(n)}`, range: [-0.5, phases.length - 0.5], tickvals: ticks, tickangle: 0,
      ticktext: ticks.map((phase) => String(data.phases[phase])), showgrid: false,
      title: n + plan.columns >= count ? { text: "phase (equally spaced)", font: { size: 11.5 }, standoff: 6 } : undefined });
    layout[`yaxis${suffix(n)}`] = axisOf(ink, spot.y, { anchor: `x${suffix(n)}`, nticks: 5, showticklabels: spot.column === 0, matches: n ? "y" : undefined,
      title: spot.column === 0 ? { text: plan.rows > 1 ? axis.short : axis.title, font: { size: 11.5 } } : undefined, ...axis.more });
    if (count > 1) layout.annotations.push(title(titles[n], spot, ink, Math.floor(plan.wide / 7)));
  });
  return { plan, layout };
}

function askChanges(data, read, figure, redraw) {
  ask(figure, "Quantity", read.quantities.map(({ name }, i) => [i, name]), "quantity", redraw);
  const runs = read.quantities.flatMap((quantity) => quantity.runs);
  const networks = [...new Set(runs.map((run) => run.network))], seeds = [...new Set(runs.map((run) => run.seed))];
  ask(figure, "Student", networks.map((i) => [i, data.networks[i].name]), "network", redraw);
  ask(figure, "Seed", seeds.sort((a, b) => a - b).map((seed) => [seed, String(seed)]), "seed", redraw);
}

function readChanges(data, read, choice, state, width, ink) {
  const quantity = read.quantities[choice.quantity], own = quantity.runs.filter((run) => run.network === choice.network);
  const name = data.networks[choice.network].name;
  if (!own.length) return nothing(ink, `${name} has no curves of ${quantity.name}.`);
  const run = own.find(({ seed }) => seed === choice.seed) ?? own[0], unit = unitText(quantity.unit);
  const color = ink.network(data.networks[run.network].color), traces = [], cells = [];
  const keys = [`${clip(name, 34)}, seed ${run.seed}`, "straight pieces", "change point with its 95 % interval"];
  const pad = 0.05 * (quantity.range[1] - quantity.range[0]);
  const { layout } = phasePanels(data, run.curves.map((curve) => curve.short), width, ink, keys, { title: `${quantity.name} (${unitWord(quantity.unit)})`,
    short: unitWord(quantity.unit), more: { range: [quantity.range[0] - (quantity.range[0] < 0 ? pad : 0), quantity.range[1] + pad] } });
  run.curves.forEach((curve, n) => {
    const axes = { xaxis: `x${suffix(n)}`, yaxis: `y${suffix(n)}` };
    for (const change of curve.changes) {
      const place = { xref: `x${suffix(n)}`, yref: `y${suffix(n)} domain`, y0: 0, y1: 1, layer: "below" };
      layout.shapes.push({ type: "rect", ...place, x0: change.low, x1: change.high, fillcolor: veil(color, ink.dark ? 0.3 : 0.16), line: { width: 0 } });
      const middle = (change.before + change.after) / 2;
      layout.shapes.push({ type: "line", ...place, x0: middle, x1: middle, line: { color, width: 1.2, dash: "dash" } });
    }
    const words = curve.at.map((phase, i) => {
      const near = curve.changes.filter((change) => change.after === phase);
      return [name, `seed ${run.seed}, layer ${curve.layer}${curve.other && curve.other !== curve.layer ? `, teacher layer ${curve.other}` : ""}, phase ${data.phases[phase]}`,
        `${small(curve.value[i])} ± ${small(2 * curve.error[i])}${unit} (two standard errors), piece ${curve.piece[i] + 1} fitted ${small(curve.fitted[i])}`,
        ...near.map((change) => changeText(data, change, unit))];
    });
    traces.push({ type: "scatter", mode: "markers", x: curve.at, y: curve.value, ...axes, name: inert(keys[0]), legendgroup: "points", showlegend: n === 0,
      hovertext: words.map(hover), hoverinfo: "text", marker: { size: 6, color },
      error_y: { type: "data", array: curve.error.map((error) => 2 * error), thickness: 1, width: 2, color } });
    cells.push(words.map((line, point) => ({ curve: traces.length - 1, point, subplot: `x${suffix(n)}y${suffix(n)}`, words: line })));
    for (const piece of new Set(curve.piece)) {
      const spots = curve.at.map((_, i) => i).filter((i) => curve.piece[i] === piece);
      traces.push({ ...plain(spots.map((i) => curve.at[i]), spots.map((i) => curve.fitted[i]), color, "solid", 1.8, axes, "straight pieces", n === 0 && piece === 0), legendgroup: "fit" });
    }
  });
  traces.push({ type: "scatter", mode: "markers", x: [null], y: [null], xaxis: "x", yaxis: "y", name: keys[2], hoverinfo: "skip",
    marker: { symbol: "square", size: 13, color: veil(color, 0.3) } });
  const seeds = own.map(({ seed }) => seed), layers = [...new Set(own.flatMap((one) => one.curves.map((curve) => curve.layer)))];
  const rows = layers.map((layer) => [layer, ...own.map((one) => {
    const curve = one.curves.find((other) => other.layer === layer);
    if (!curve) return "not recorded";
    return curve.changes.length ? curve.changes.map((change) =>
      `${step(data, change.before, change.after)} [${data.phases[change.low]}, ${data.phases[change.high]}], ${change.confidence.toFixed(2)}`) : "none";
  })]);
  return { traces, layout, cells, facts: `${name}, seed ${run.seed}. ${quantity.facts}`, table: {
    caption: `Change points of ${name}: the recordings before and after, [95 % interval], and the probability that the change is at most one recording away`,
    head: ["layer", ...seeds.map((seed) => `seed ${seed}`)], rows } };
}

const unitWord = (unit) => ({ nats: "nats", bits: "bits", share: "0 to 1" })[unit] ?? unit;
const changeText = (data, change, unit) => `change between ${data.phases[change.before]} and ${data.phases[change.after]}, 95 % interval `
  + `[${data.phases[change.low]}, ${data.phases[change.high]}], confidence ${change.confidence.toFixed(2)}, jump ${signed(change.jump)}${unit}`;

function nothing(ink, sentence) {
  const layout = blank(ink, 120, 20);
  layout.xaxis = { visible: false };
  layout.yaxis = { visible: false };
  layout.annotations.push({ text: hover([sentence]), showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5, font: { size: 13, color: ink.ink } });
  return { traces: [], layout, cells: [], facts: "", table: null };
}

function readDivergence(data, read, choice, state, width, ink) {
  const shown = read.matchings.map((matching) => ({ ...matching, parts: matching.parts.filter((part) => !state.hidden.has(part.network)) }));
  const named = [...new Set(shown.flatMap(({ parts }) => parts.map((part) => part.network)))];
  if (!named.length) return nothing(ink, "No student is selected.");
  const keys = [...named.map((i) => clip(data.networks[i].name, 34)), "bias from sampling", "term of the last layer", "largest fall, clear in every seed"];
  // The axis is logarithmic because D_F falls by orders of magnitude during training; zeros have no place on it.
  const all = shown.flatMap(({ parts }) => parts.flatMap((part) => [...part.smallest, ...part.largest, ...part.last, ...part.floor])).filter((value) => value > 0);
  const limits = [Math.log10(Math.min(...all)) - 0.1, Math.log10(Math.max(...all)) + 0.1];
  const { layout } = phasePanels(data, shown.map(({ name }) => `matched by ${MATCHED[name]}`), width, ink, keys, { title: "D_F (nats², log)", short: "D_F (nats², log)",
    least: 330, high: 260, left: 66, more: { type: "log", range: limits, tickformat: "~g", nticks: 6 } });
  const traces = [], cells = [], rowsOf = named.map((i) => [data.networks[i].name]);
  let clear = false;
  shown.forEach(({ name, parts }, n) => {
    const axes = { xaxis: `x${suffix(n)}`, yaxis: `y${suffix(n)}` };
    for (const part of parts) {
      const color = ink.network(data.networks[part.network].color), label = clip(data.networks[part.network].name, 34);
      const words = part.at.map((phase, i) => [data.networks[part.network].name, `matched by ${MATCHED[name]}, phase ${data.phases[phase]}`,
        `D_F ${small(part.mean[i])} nats²${part.seeds > 1 ? ` (mean), ${part.seeds} seeds: ${small(part.smallest[i])} to ${small(part.largest[i])}` : ", 1 run"}`,
        `term of the last layer ${small(part.last[i])} nats², ${part.share[i] === null ? "fraction unknown" : `${Math.round(100 * part.share[i])} % of D_F`}`,
        `bias from sampling about ${small(part.floor[i])} nats²`]);
      if (part.seeds > 1) {
        const back = [...part.at.keys()].reverse();
        traces.push({ type: "scatter", mode: "lines", ...axes, hoverinfo: "skip", showlegend: false, fill: "toself", fillcolor: veil(color, ink.dark ? 0.32 : 0.2), line: { width: 0 },
          x: [...part.at, ...back.map((i) => part.at[i])], y: [...part.smallest, ...back.map((i) => part.largest[i])] });
      }
      traces.push(plain(part.at, part.last, color, "dot", 1.4, axes, "", false));
      // Steps are sorted by the number of runs: the first one is drawn only if it is the same in every seed.
      const [only] = part.steps;
      if (only?.decision === "clear" && only.seeds === part.seeds) {
        const ends = [only.from, only.to].map((phase) => part.at.indexOf(phase));
        traces.push(plain([only.from, only.to], ends.map((i) => part.mean[i]), color, "solid", 6, axes, "", false));
        clear = true;
      }
      traces.push({ type: "scatter", mode: "lines+markers", x: part.at, y: part.mean, ...axes, name: inert(label), legendgroup: label, showlegend: n === 0,
        line: { color, width: 2 }, marker: { size: 6, color }, hovertext: words.map(hover), hoverinfo: "text" });
      cells.push(words.map((line, point) => ({ curve: traces.length - 1, point, subplot: `x${suffix(n)}y${suffix(n)}`, words: line })));
      const row = rowsOf[named.indexOf(part.network)], total = part.steps.reduce((sum, { seeds }) => sum + seeds, 0);
      row.push(part.steps.map((one) => `${one.decision === "none" ? "no clear fall" : step(data, one.from, one.to)}${one.decision === "tie" ? " (tie)" : ""}: `
        + `${one.seeds} of ${total} run${total > 1 ? "s" : ""}${one.decision === "none" ? "" : `, falls by ${small(one.fall)}`}`));
      const ends = [part.share[0], part.share[part.share.length - 1]];
      row.push(ends.map((share) => (share === null ? "unknown" : `${Math.round(100 * share)} %`)).join(" → "));
    }
    const [first] = parts;
    if (first) traces.push(plain(first.at, first.floor, ink.soft, "dashdot", 1.2, axes, "bias from sampling", n === 0));
  });
  const legend = (dash, size, label) => traces.push(plain([null], [null], ink.soft, dash, size, { xaxis: "x", yaxis: "y" }, label, true));
  legend("dot", 1.4, "term of the last layer");
  if (clear) legend("solid", 6, "largest fall, clear in every seed");
  return { traces, layout, cells, table: { caption: "The step between two recordings with the largest fall of D_F, in nats², and the fraction of D_F from the last layer at the first and the last phase",
    head: ["student", ...shown.flatMap(({ name }) => [`${name}: largest fall`, "last layer"])], rows: rowsOf },
    facts: "Label information of the student and of the final teacher. Lines are means over seeds, bands extend from the smallest to the largest. "
      + "With the nearest value, a teacher layer can be part of several terms. The bias from sampling is that of the first student drawn." };
}

function askPaths(data, read, figure, redraw) {
  ask(figure, "Quantity", read.quantities.map(({ name }, i) => [i, name]), "quantity", redraw);
  const pairs = read.quantities.flatMap((quantity) => quantity.pairs);
  const named = [...new Set(pairs.flatMap(({ first, second }) => [first, second]))].sort((a, b) => a - b).map((i) => [i, data.networks[i].name]);
  const start = pairs[0], chosen = [["first", "Student"], ["second", "minus"]].map(([key, label]) => [key, ask(figure, label, named, key, redraw)]);
  for (const [key, select] of chosen) {
    figure.choice[key] = start[key];
    if (select) select.value = start[key];
  }
}

function readPaths(data, read, choice, state, width, ink) {
  const quantity = read.quantities[choice.quantity], both = [choice.first, choice.second];
  if (both[0] === both[1]) return nothing(ink, "Choose two different students.");
  const pair = quantity.pairs.find(({ first, second }) => both.includes(first) && both.includes(second));
  const names = both.map((i) => data.networks[i].name);
  if (!pair) return nothing(ink, `${names[0]} and ${names[1]} were not compared in ${quantity.name}; the reason is given below.`);
  // A pair is stored once; the other direction is its negative, with the same band.
  const sign = pair.first === both[0] ? 1 : -1, unit = unitText(quantity.unit), color = ink.network(data.networks[both[0]].color);
  const layers = pair.layers.map((layer) => ({ ...layer, difference: layer.difference.map((value) => (value === null ? null : sign * value)) }));
  const most = Math.max(...layers.flatMap((layer) => layer.difference.map(Math.abs)), 1e-9);
  const band = Math.max(...layers.flatMap((layer) => layer.threshold.filter((value) => value !== null)), 0);
  // The axis shows the differences in full. A band of two or three seeds can be many times wider, and would flatten them
  // into a line, so it is cut off at 2.5 times the largest difference.
  const limit = 1.08 * Math.max(1.1 * most, Math.min(band, 2.5 * most)), traces = [], cells = [];
  const keys = ["inside: no difference detected", "difference of the means", "different up to the last phase"];
  const { layout } = phasePanels(data, layers.map((layer) => layer.short), width, ink, keys, { title: `${quantity.name}, difference (${unitWord(quantity.unit)})`,
    short: `difference (${unitWord(quantity.unit)})`, more: { range: [-limit, limit] } });
  layers.forEach((layer, n) => {
    const axes = { xaxis: `x${suffix(n)}`, yaxis: `y${suffix(n)}` }, place = { xref: `x${suffix(n)}`, yref: `y${suffix(n)}` }, back = [...layer.at.keys()].reverse();
    traces.push({ type: "scatter", mode: "lines", ...axes, hoverinfo: "skip", fill: "toself", fillcolor: veil(ink.soft, 0.22), line: { width: 0 },
      x: [...layer.at, ...back.map((i) => layer.at[i])], y: [...layer.threshold, ...back.map((i) => -layer.threshold[i])], name: keys[0], legendgroup: "band", showlegend: n === 0 });
    layout.shapes.push({ type: "line", xref: `x${suffix(n)} domain`, yref: place.yref, x0: 0, x1: 1, y0: 0, y1: 0, line: { color: ink.ink, width: 1 }, layer: "below" });
    if (layer.parts >= 0) layout.shapes.push({ type: "line", ...place, yref: `y${suffix(n)} domain`, x0: layer.parts, x1: layer.parts, y0: 0, y1: 1,
      line: { color, width: 1.4, dash: "dash" }, layer: "below" });
    const words = layer.at.map((phase, i) => [`${names[0]} minus ${names[1]}`, `layer ${layer.layer}, phase ${data.phases[phase]}`,
      `${signed(layer.difference[i])}${unit}, threshold ${small(layer.threshold[i])}: ${layer.apart[i] ? "different" : "no difference detected"}`]);
    traces.push({ type: "scatter", mode: "lines+markers", x: layer.at, y: layer.difference, ...axes, name: keys[1], legendgroup: "line", showlegend: n === 0,
      line: { color, width: 2 }, marker: { size: 7, color: layer.apart.map((apart) => (apart ? color : ink.paper)), line: { color, width: 1.5 } },
      hovertext: words.map(hover), hoverinfo: "text" });
    cells.push(words.map((line, point) => ({ curve: traces.length - 1, point, subplot: `x${suffix(n)}y${suffix(n)}`, words: line })));
  });
  if (layers.some((layer) => layer.parts >= 0)) traces.push(plain([null], [null], color, "dash", 1.4, { xaxis: "x", yaxis: "y" }, keys[2], true));
  const beyond = layers.some((layer) => layer.threshold.some((value) => value === null || value > limit));
  return { traces, layout, cells, facts: `${names[0]} minus ${names[1]}. ${quantity.facts} Errors from ${pair.basis}.`
      + `${beyond ? " Where the band fills a panel, it extends beyond the axis." : ""}`,
    table: { caption: `The first phase from which ${names[0]} and ${names[1]} differ, with the same sign, up to the last phase`, head: ["layer", "different from phase", "difference at the last phase"],
      rows: layers.map((layer) => [layer.layer, layer.parts < 0 ? "not detected" : String(data.phases[layer.parts]),
        `${signed(layer.difference[layer.difference.length - 1])}${unit}`]) } };
}
