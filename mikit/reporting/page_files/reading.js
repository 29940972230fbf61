// Names come from files and are not trusted. Plotly interprets some HTML tags in text, so every name is escaped first.
const find = (id) => document.getElementById(id);
const inert = (name) => String(name).replace(/[\u0000-\u001f\u007f]/g, "\ufffd")
  .replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const clip = (name, limit) => (name.length <= limit ? name : `${name.slice(0, limit / 2 - 1)}…${name.slice(1 - limit / 2)}`);
const make = (tag, content, kind) => {
  const element = document.createElement(tag);
  if (content !== undefined) element.textContent = content;
  if (kind) element.className = kind;
  return element;
};

async function unpack() {
  const packed = Uint8Array.from(atob(find("data").textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const shape = (cell) => {
  if (cell === null) return "";
  if (typeof cell !== "number" || Number.isInteger(cell)) return String(cell);
  const size = Math.abs(cell);
  return size >= 0.001 && size < 100000 ? String(Number(cell.toPrecision(4))) : cell.toExponential(2);
};
const digits = (value) => (value === null ? "not measured" : shape(Number(value.toPrecision(3))));

function colors() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  const dark = read("scheme") === "dark";
  // A color that is legible on white is too dark on black, so it is mixed with two fifths of white.
  const network = (hex) => {
    if (!dark) return hex;
    const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `#${parts.map((part) => Math.round(part + (255 - part) * 0.4).toString(16).padStart(2, "0")).join("")}`;
  };
  return { dark, network, paper: read("paper"), ink: read("ink"), soft: read("soft"), line: read("line"),
    shade: read("shade"), outline: dark ? "#ffb000" : "#d55e00" };
}

const veil = (hex, share) => `${hex}${Math.round(255 * share).toString(16).padStart(2, "0")}`;

const runs = (some, all) => (all > 1 ? `${some} of ${all} runs` : "this run");

// The text of one point, line by line: place, value, spread, references, verdict.
function pointText(data, quantity, level, part, spot, phase, layer, other) {
  const unit = { nats: " nats", bits: " bits" }[data.quantities[quantity].unit] ?? "";
  const at = (name) => part[name][spot];
  const lines = [data.networks[part.network].name, [layer && `layer ${layer}`, other && `teacher layer ${other}`,
    `phase ${data.phases[phase]}`].filter(Boolean).join(", ")];
  if (at("verdict") < 0) return [...lines, "no row in the table"];
  lines.push(at("mean") === null ? "not measured" : `${digits(at("mean"))}${unit}${at("count") > 1 ? " (mean)" : ""}`);
  if (at("count") > 1) lines.push(`${at("count")} seeds: ${digits(at("smallest"))} to ${digits(at("largest"))}`);
  else if (at("mean") !== null) lines.push("1 run");
  if (at("low") !== null && at("high") !== null) {
    lines.push(`95 % sampling interval ${digits(at("low"))} to ${digits(at("high"))}${at("count") > 1 ? " (mean of the seeds)" : ""}`);
  }
  const beside = [["untrained", "untrained"], ["null", "permuted samples"]].filter(([name]) => at(name) !== null);
  if (beside.length) lines.push(beside.map(([name, words]) => `${words} ${digits(at(name))}`).join(", "));
  if (level.noise !== null) lines.push(`teacher noise σ = ${level.noise}`);
  if (part.rises?.[spot]) lines.push(`above the previous layer in ${runs(part.rises[spot], at("count"))}: easier to decode, no information added`);
  if (part.impossible?.[spot]) lines.push(`impossible in ${runs(part.impossible[spot], at("count"))}: more than H(Y)`);
  const reason = data.reasons[at("reason")];
  lines.push(`${data.verdicts[at("verdict")]}${reason ? `: ${reason}` : ""}${at("count") > 1 ? " (worst of the seeds)" : ""}`);
  return lines;
}

function hover(lines) {
  // Plotly does not wrap hover text, and a long reason would leave the page.
  const wrapped = lines.flatMap((line) => {
    const rows = [""];
    for (const word of line.split(" ")) {
      const last = rows[rows.length - 1];
      if (last && last.length + word.length > 58) rows.push(word);
      else rows[rows.length - 1] = last ? `${last} ${word}` : word;
    }
    return rows.length > 8 ? [...rows.slice(0, 8), "…"] : rows;
  });
  return wrapped.map(inert).join("<br>");
}
