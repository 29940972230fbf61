// All figures share one state: phase, noise, hidden networks, and the network that maps are compared with.
const DRAW = { layers: alongLayers, phases: alongPhases, map: layerMaps };

// The table below a reading: a cell is a text, a list of texts, or a text with a mark.
function fillTable(table, caption, content) {
  table.parentElement.hidden = caption.hidden = content === null;
  if (content === null) return;
  const fill = (cell, lines) => {
    for (const line of [lines].flat()) {
      const row = make("div", typeof line === "string" ? line : line.text);
      if (row.textContent.length > 48) cell.className = "long";
      if (typeof line !== "string") row.append(" ", make("span", line.mark, `mark ${line.mark.replace(/\W/g, "-")}`));
      cell.append(row);
    }
    return cell;
  };
  const head = make("tr"), body = make("tbody");
  content.head.forEach((name) => { const cell = make("th", name); cell.scope = "col"; head.append(cell); });
  for (const [first, ...rest] of content.rows) {
    const row = make("tr"), name = make("th");
    name.scope = "row";
    name.append(make("div", first));
    row.append(name, ...rest.map((lines) => fill(make("td"), lines)));
    body.append(row);
  }
  const top = make("thead");
  top.append(head);
  caption.textContent = content.caption;
  table.replaceChildren(top, body);
}

function setUpFigures(data) {
  const last = data.phases.length - 1;
  const state = { phase: last, noise: data.quantities.recovered_share?.start ?? 0, hidden: new Set(), base: null };
  const figures = [...document.querySelectorAll("section[data-figure]")].map((section) => ({
    section, box: section.querySelector(".chart"), strip: section.querySelector(".strip"), facts: section.querySelector(".facts"),
    reading: section.querySelector(".reading"), choices: section.querySelector(".choices"), summary: section.querySelector(".summary"), caption: section.querySelector(".caption"), choice: {},
    chart: { ...section.dataset }, near: false, stale: true, at: [0, 0], made: null,
  }));
  const levelOf = ({ chart }) => {
    const { levels } = data.quantities[chart.quantity];
    return levels.length > 1 ? levels[state.noise] : levels[0];
  };

  function strip(figure, level, parts) {
    const counts = data.verdicts.map(() => 0), reasons = new Map(), missing = [];
    for (const part of parts) {
      const size = part.layers.length * part.others.length;
      let here = 0;
      for (let spot = state.phase * size; spot < (state.phase + 1) * size; spot += 1) {
        const code = part.verdict[spot];
        const left = (spot % size) % part.others.length, layer = Math.floor((spot % size) / part.others.length);
        if (code < 0 || (figure.chart.kind === "phases" && part.match[layer] !== left)) continue;
        here += 1;
        counts[code] += 1;
        const reason = data.reasons[part.reason[spot]];
        if (code !== 1 && reason) reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
      }
      if (!here) missing.push(data.networks[part.network].name);
    }
    const total = counts.reduce((a, b) => a + b, 0), bar = make("span", undefined, "bar");
    const words = [1, 2, 3, 4, 0].filter((code) => counts[code]);
    for (const code of words) {
      const piece = make("i", undefined, data.verdicts[code].replace(" ", "-"));
      piece.style.flexGrow = counts[code];
      bar.append(piece);
    }
    bar.setAttribute("aria-hidden", "true");
    const [commonest] = [...reasons].sort((a, b) => b[1] - a[1]);
    let text = total ? `Phase ${data.phases[state.phase]}, ${total.toLocaleString("en")} point${total > 1 ? "s" : ""}: ${words.map((code) =>
      `${counts[code].toLocaleString("en")} ${data.verdicts[code]}`).join(", ")}.` : `No points at phase ${data.phases[state.phase]}.`;
    if (commonest) text += ` Most often: ${commonest[0]} (${commonest[1].toLocaleString("en")}).`;
    if (missing.length && total) text += ` Not recorded at this phase: ${missing.join(", ")}.`;
    figure.strip.replaceChildren(...(total ? [bar] : []), make("span", text));
  }

  const show = (figure) => {
    figure.box.style.height = `${figure.made.layout.height}px`;
    Plotly.react(figure.box, figure.made.traces, figure.made.layout, { displaylogo: false, responsive: false, scrollZoom: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: { filename: figure.chart.figure, scale: 2 } });
  };

  function drawReading(figure, moved) {
    figure.stale = false;
    // A reading shows all phases, so the slider does not change it.
    if (moved && figure.made) return;
    const { figure: name } = figure.chart;
    figure.made = READ[name](data, data.readings[name], figure.choice, state, figure.box.clientWidth, colors());
    figure.facts.textContent = figure.made.facts;
    show(figure);
    fillTable(figure.summary, figure.caption, figure.made.table);
  }

  function draw(figure, moved) {
    if (figure.chart.reading) return drawReading(figure, moved);
    const level = levelOf(figure), ink = colors();
    const parts = level.parts.filter((part) => !state.hidden.has(part.network));
    strip(figure, level, parts);
    figure.stale = false;
    figure.section.dataset.phase = data.phases[state.phase];
    // Only the marker of the phase moves here: relayout is cheap, while react would redraw every trace.
    if (moved && figure.made?.moves) {
      Plotly.relayout(figure.box, { shapes: figure.made.moves(state.phase) });
      return;
    }
    figure.made = DRAW[figure.chart.kind](data, figure.chart, level, parts, state, figure.box.clientWidth, ink);
    const note = figure.made.note ? `${figure.made.note} ` : "";
    figure.facts.textContent = note + level.facts;
    show(figure);
  }

  // Drawing all figures takes seconds for large flows. Those in view are drawn now, the others when they come into view.
  function refresh(moved = false) {
    for (const figure of figures) {
      if (figure.near) draw(figure, moved && !figure.stale);
      else if (!(moved && figure.chart.reading)) figure.stale = true;
    }
  }
  const all = () => figures.forEach((figure) => { if (figure.stale) draw(figure, false); });

  // Arrow keys move through the values of the focused figure, so that they are accessible without a pointer.
  function walk(figure, event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    const cells = figure.made?.cells.filter((row) => row.length);
    if (!step || !cells?.length) return;
    event.preventDefault();
    // Maps draw their first row at the bottom, and lists of curves at the top.
    const rows = cells.length, down = figure.chart.kind === "map" ? 1 : -1;
    if (figure.walked) figure.at = [Math.min(rows - 1, Math.max(0, figure.at[0] + down * step[0])), figure.at[1] + step[1]];
    figure.walked = true;
    const row = cells[Math.min(figure.at[0], rows - 1)];
    figure.at = [Math.min(figure.at[0], rows - 1), Math.min(row.length - 1, Math.max(0, figure.at[1]))];
    const cell = row[figure.at[1]];
    if (!cell) return;
    figure.reading.textContent = cell.words.join(" · ");
    const trace = figure.made.traces[cell.curve], [i, j] = [cell.point].flat();
    Plotly.Fx.hover(figure.box, j === undefined ? { xval: trace.x[i], yval: trace.y[i] } : { xval: j, yval: i }, cell.subplot);
  }

  const slider = find("phase");
  function move(phase) {
    state.phase = Math.min(last, Math.max(0, phase));
    slider.value = state.phase;
    const text = `phase ${data.phases[state.phase]}`;
    slider.setAttribute("aria-valuetext", `${text}, ${state.phase + 1} of ${last + 1}`);
    find("phase-text").textContent = `${data.phases[state.phase]} (${state.phase + 1} of ${last + 1})`;
    refresh(true);
  }

  let playing = 0;
  function play() {
    const stop = playing !== 0;
    if (stop) clearInterval(playing);
    playing = stop ? 0 : setInterval(() => (state.phase === last ? play() : move(state.phase + 1)), 800);
    find("play").textContent = stop ? "Play" : "Stop";
    if (!stop) move(state.phase === last ? 0 : state.phase);
  }

  function choices() {
    const levels = data.quantities.recovered_share?.levels ?? [];
    if (levels.length > 1) {
      levels.forEach((level, i) => find("noise").append(new Option(`σ = ${level.noise}`, i, i === state.noise, i === state.noise)));
      find("noise").addEventListener("change", (event) => { state.noise = Number(event.target.value); refresh(); });
    } else find("noise").parentElement.hidden = true;
    if (data.networks.length > 1) {
      find("base").append(new Option("values", ""), ...data.networks.map(({ name }, i) => new Option(`difference from ${name}`, i)));
      find("base").addEventListener("change", (event) => {
        state.base = event.target.value === "" ? null : Number(event.target.value);
        refresh();
      });
    } else find("base").parentElement.hidden = true;
    data.networks.forEach(({ name }, i) => {
      const label = make("label"), box = make("input"), swatch = make("span", undefined, "swatch");
      box.type = "checkbox";
      box.checked = true;
      swatch.dataset.network = i;
      box.addEventListener("change", () => { state.hidden[box.checked ? "delete" : "add"](i); refresh(); });
      label.append(box, swatch, make("span", name));
      find("networks").append(label);
    });
    paint();
  }
  function paint() {
    const ink = colors();
    for (const swatch of document.querySelectorAll(".swatch")) swatch.style.background = ink.network(data.networks[swatch.dataset.network].color);
  }

  slider.max = last;
  slider.addEventListener("input", () => move(Number(slider.value)));
  find("play").addEventListener("click", play);
  find("play").disabled = slider.disabled = last < 1;
  choices();
  find("console").hidden = false;
  for (const figure of figures) {
    if (figure.chart.reading) ASK[figure.chart.figure](data, data.readings[figure.chart.figure], figure, () => drawReading(figure, false));
    figure.box.addEventListener("keydown", (event) => walk(figure, event));
    figure.box.addEventListener("blur", () => { figure.reading.textContent = ""; Plotly.Fx.unhover(figure.box); });
  }
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const figure = figures.find(({ section }) => section === target);
      figure.near = isIntersecting;
      if (isIntersecting && figure.stale) draw(figure, false);
    }
  }, { rootMargin: "300px 0px" });
  figures.forEach(({ section }) => watch.observe(section));
  move(last);

  // Mobile browsers fire resize when the address bar hides; only a new width changes the layout.
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    refresh();
  });
  addEventListener("beforeprint", all); // figures that were never in view are not drawn yet
  return { restyle: () => { paint(); refresh(); } };
}
