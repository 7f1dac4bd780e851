// The program of figures.html. The controls hold what is chosen; `show` draws it.
"use strict";
(() => {
const COSTS = {
  tokens: "training tokens", flops: "training FLOPs", seconds: "training seconds on the device", parameters: "parameters",
};
const MOST_LABELS = 8, LABELLED_WIDTH = 560;  // contenders, and pixels below which labels would overlap
const byId = (id) => document.getElementById(id);
const content = JSON.parse(byId("content").textContent);
// The results stay on this machine: no button uploads them.
const config = {
  responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d"],
};

// Plotly interprets a few HTML tags in its texts.
const escaped = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const short = (name) => escaped(name.length > 28 ? `${name.slice(0, 27)}\u2026` : name);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const finite = (values) => values.filter((value) => value !== null);

/** A number for readers: 2.8393, 33,536 or 1.062e+10. */
function amount(value) {
  if (value === null) return "-";
  const size = Math.abs(value);
  if (size >= 1e7 || (size > 0 && size < 1e-3)) return value.toExponential(3);
  return value.toLocaleString("en-US", size >= 1000 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 5 });
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const fill = (id, options) => byId(id).replaceChildren(
  ...options.map(([value, text]) => element("option", { value, textContent: text })));

const metric = () => content.metrics.find(({ key }) => key === byId("metric").value);
const budget = () => content.budgets.find(({ key }) => key === byId("budget").value);
const isChosen = (name) => byId("contenders").querySelectorAll("input")[indexOf(name)].checked;
const indexOf = (name) => content.contenders.findIndex((contender) => contender.name === name);
const chosen = (rows) => rows.filter((row) => row.budget === budget().key && isChosen(row.contender));
const styleOf = (name) => content.contenders[indexOf(name)];

/** The p-quantile of sorted values, between the two nearest ones. */
function quantile(sorted, p) {
  const place = p * (sorted.length - 1), below = Math.floor(place);
  return sorted[below] + (place - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
}

/** Limits of an axis; losses that would flatten the rest are left out, as in loss_by_flops.png. */
function readableRange(values, isLoss) {
  const sorted = finite(values).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  const [first, third] = [quantile(sorted, 0.25), quantile(sorted, 0.75)];
  const kept = isLoss ? sorted.filter((value) => value <= third + 3 * (third - first)) : sorted;
  const [low, high] = [kept[0], kept.at(-1)];
  const margin = 0.06 * (high - low) || 0.1 * Math.abs(high) || 0.1;
  return [low - margin, high + margin];
}

const layout = (x, y, more) => ({
  margin: { l: 55, r: 15, t: 15, b: 50 }, showlegend: false, hovermode: "closest", paper_bgcolor: "#fff",
  font: { color: "#222" }, hoverlabel: { align: "left", bgcolor: "#fff", bordercolor: "#444", font: { color: "#111" } },
  xaxis: { gridcolor: "#ddd", zeroline: false, automargin: true, ...x },
  yaxis: { gridcolor: "#ddd", zeroline: false, automargin: true, ...y }, ...more,
});

function draw(id, title, note, traces, axes) {
  byId(`${id}-title`).textContent = title;
  byId(`${id}-note`).textContent = note;
  byId(id).setAttribute("aria-label", `${title}. ${note}`);
  return Plotly.react(byId(id), traces, axes, config);
}

// --- curves ---

/** Values along the axis of costs for the steps of a group, in proportion to the cost of the whole training. */
const places = (group, cost, steps) => steps.map((step) => (step / group.steps) * mean(finite(group.costs[cost])));

function bandTrace(group, curve, xs, kind) {
  const [low, high] = kind === "range" ? [curve.low, curve.high] : [curve.interval_low, curve.interval_high];
  const inside = [...xs.keys()].filter((i) => low[i] !== null && high[i] !== null);
  const back = [...inside].reverse();
  return {
    type: "scatter", mode: "lines", name: escaped(`band of ${group.contender}`), hoverinfo: "skip", fill: "toself",
    x: [...inside, ...back].map((i) => xs[i]), y: [...inside.map((i) => high[i]), ...back.map((i) => low[i])],
    line: { width: 0 }, fillcolor: `${styleOf(group.contender).colour}26`,
  };
}

function curveTrace(group, curve, xs) {
  const style = styleOf(group.contender);
  return {
    type: "scatter", mode: xs.length > 40 ? "lines" : "lines+markers", name: escaped(group.contender), x: xs,
    y: curve.mean, hoverinfo: "text",
    hovertext: curve.steps.map((step, i) => [
      `<b>${escaped(group.contender)}</b>, step ${step}`, `mean ${amount(curve.mean[i])}`,
      `range ${amount(curve.low[i])} to ${amount(curve.high[i])}`,
      ...(curve.interval_low[i] === null ? [] : [`95 % interval ${amount(curve.interval_low[i])} to ${amount(curve.interval_high[i])}`]),
      `${group.seeds.length} seeds`,
    ].join("<br>")),
    line: { color: style.colour, dash: style.dash, width: 2 }, marker: { color: style.colour, symbol: style.symbol, size: 7 },
  };
}

function showCurves(groups) {
  const cost = byId("axis").value, kind = byId("band").value;
  const curves = groups.map((group) => {
    const curve = group.curves[metric().key];
    return { group, curve, xs: places(group, cost, curve.steps) };
  }).filter(({ xs }) => xs.length);
  // Losses in the first tenth of the training are so high that they would flatten the rest.
  const late = curves.flatMap(({ curve, xs }) => [curve.low, curve.high].flatMap((line) => line.filter((_, i) => xs[i] >= 0.1 * xs.at(-1))));
  const bands = {
    range: "The band is the range from the lowest to the highest seed.",
    interval: "The band is the 95 % t interval of the mean over the seeds; with fewer than 4 seeds there is none.",
  };
  const note = curves.length
    ? `Lines are means over the seeds. ${bands[kind]} The axis leaves out the start; a double click on the figure shows all.`
    : "There are no values to draw.";
  const traces = [...curves.map(({ group, curve, xs }) => bandTrace(group, curve, xs, kind)),
    ...curves.map(({ group, curve, xs }) => curveTrace(group, curve, xs))];
  return draw("curves", `${metric().title} during training`, note, traces,
    layout({ title: { text: COSTS[cost] } }, { title: { text: escaped(metric().title) }, range: readableRange(late, metric().is_loss) }));
}

// --- differences ---

/** Differences of a metric without an interval, by the seeds that both have. */
function bySeed(difference) {
  const [group, other] = [difference.contender, difference.reference].map((name) => content.groups.find(
    (g) => g.contender === name && g.budget === difference.budget));
  const key = metric().key;
  return finite(group.seeds.map((seed, i) => {
    const [a, b] = [group.finals[key].runs[i], other.finals[key].runs[other.seeds.indexOf(seed)] ?? null];
    return a === null || b === null ? null : a - b;
  }));
}

function showDifferences() {
  const tested = metric().key === "loss";
  const rows = chosen(content.differences).map((difference) => {
    const pairs = tested ? difference.pairs : bySeed(difference);
    return { ...difference, pairs, mean: tested ? difference.mean : pairs.length ? mean(pairs) : null };
  }).filter((row) => row.mean !== null).sort((a, b) => b.mean - a.mean);
  const ys = rows.map((_, i) => i), has = rows.map((row) => tested && row.low !== null);
  const decided = rows.map((row) => tested && ["better", "worse"].includes(row.verdict));
  const means = {
    type: "scatter", mode: "markers", name: "means", x: rows.map((row) => row.mean), y: ys, hoverinfo: "text",
    hovertext: rows.map((row) => [`<b>${escaped(row.contender)}</b> minus ${escaped(row.reference)}`, ...(tested
      ? row.cells.slice(2).map((cell, i) => `${escaped(content.columns[i + 2])}: ${escaped(cell)}`)
      : [`mean difference ${amount(row.mean)}`])].join("<br>")),
    error_x: {
      type: "data", symmetric: false, color: "#222", thickness: 2, width: 6,
      array: rows.map((row, i) => (has[i] ? row.high - row.mean : 0)),
      arrayminus: rows.map((row, i) => (has[i] ? row.mean - row.low : 0)), visible: has.includes(true),
    },
    marker: {
      size: 12, color: rows.map((row, i) => (decided[i] ? styleOf(row.contender).colour : "#fff")),
      symbol: rows.map((row) => styleOf(row.contender).symbol),
      line: { width: 2, color: rows.map((row) => styleOf(row.contender).colour) },
    },
  };
  const seeds = {
    type: "scatter", mode: "markers", name: "seeds", hoverinfo: "skip", x: rows.flatMap((row) => row.pairs),
    y: rows.flatMap((row, i) => row.pairs.map(() => i - 0.25)), marker: { symbol: "line-ns-open", size: 9, color: "#444" },
  };
  const labels = rows.map((row) => `${short(row.contender)}<br>${tested ? escaped(row.verdict.replace(/:.*/, "")) : ""}`);
  const zero = { type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: "#222", width: 1 } };
  byId("differences").style.height = `${Math.max(12, 6 + 3 * rows.length)}rem`;
  const notes = {
    true: "Filled symbols: better or worse, adjusted for all comparisons of the report. Whiskers: the 95 % interval of one difference alone. Ticks: differences by seed. The table of differences below explains the tests.",
    false: "Ticks: differences by seed. Only the validation loss has intervals and verdicts.",
  };
  const note = rows.length ? notes[tested] : "There is no pair of the reference and another contender among the chosen ones.";
  return draw("differences", `${metric().title}: difference to the reference`, note, rows.length ? [seeds, means] : [], layout(
    { title: { text: `difference (${metric().is_loss ? "left" : "right"} is better)` } },
    { tickvals: ys, ticktext: labels, range: [-0.8, Math.max(rows.length, 1) - 0.3], showgrid: false }, { shapes: [zero] },
  ));
}

// --- final values ---

/** Indices of the points that no other one beats at most at their cost, by cost. */
function paretoFront(points, isLoss) {
  const better = (a, b) => (isLoss ? a < b : a > b);
  const order = [...points.keys()].filter((i) => points[i].x !== null && points[i].y !== null);
  order.sort((i, j) => points[i].x - points[j].x || (isLoss ? 1 : -1) * (points[i].y - points[j].y));
  return order.reduce((front, i) => (front.length && !better(points[i].y, points[front.at(-1)].y) ? front : [...front, i]), []);
}

function showFront(groups) {
  const cost = byId("cost").value, { key, title, is_loss: isLoss } = metric();
  const points = groups.map((group) => {
    const known = finite(group.costs[cost]);
    return { group, final: group.finals[key], x: known.length ? mean(known) : null, y: group.finals[key].mean };
  });
  const front = paretoFront(points, isLoss);
  const xs = finite(points.map(({ x }) => x)), [least, most] = [Math.min(...xs), Math.max(...xs)];
  const isLabelled = points.length <= MOST_LABELS && byId("front").clientWidth > LABELLED_WIDTH;
  const range = readableRange(points.flatMap(({ final }) => final.runs), isLoss);
  const runs = points.map(({ group, final }) => ({
    type: "scatter", mode: "markers", name: escaped(`runs of ${group.contender}`), x: group.costs[cost], y: final.runs, hoverinfo: "text",
    hovertext: group.seeds.map((seed, i) => `${escaped(group.contender)}, seed ${seed}<br>${amount(final.runs[i])}`),
    marker: { size: 6, opacity: 0.6, color: styleOf(group.contender).colour, symbol: styleOf(group.contender).symbol },
  }));
  const means = points.map(({ group, final, x, y }) => ({
    type: "scatter", mode: isLabelled ? "markers+text" : "markers", name: escaped(group.contender),
    x: [x], y: [y], text: [`\u2002${short(group.contender)}\u2002`], hoverinfo: "text",
    textposition: x - least > most - x ? "middle left" : "middle right",
    hovertext: [`<b>${escaped(group.contender)}</b><br>mean ${final.text}<br>${COSTS[cost]} ${amount(x)}`],
    marker: { size: 13, color: styleOf(group.contender).colour, symbol: styleOf(group.contender).symbol, line: { width: 1, color: "#000" } },
  }));
  const line = {
    type: "scatter", mode: "lines", name: "Pareto front", hoverinfo: "skip",
    x: [...front.map((i) => points[i].x), most], y: [...front, ...front.slice(-1)].map((i) => points[i].y), line: { color: "#000", width: 1, shape: "hv" },
  };
  const outside = points.flatMap(({ final }) => final.runs).filter((y) => y === null || y > range[1]).length;
  const note = `Large symbols are means over the seeds, small ones runs. The black line is the Pareto front of the chosen means: none of the others is better at the same or a lower cost.${outside ? ` Runs above the axis, or diverged: ${outside}.` : ""}`;
  showFinals(points, front, cost);
  return draw("front", `${title} at the end, over ${COSTS[cost]}`, note, [line, ...runs, ...means],
    layout({ title: { text: COSTS[cost] }, type: most > 3 * least ? "log" : "linear" }, { title: { text: escaped(title) }, range }));
}

function showFinals(points, front, cost) {
  const titles = ["contender", "seeds", metric().title, COSTS[cost], "on the Pareto front"];
  byId("finals-head").replaceChildren(element("tr", {}, ...titles.map((title) => element("th", { textContent: title }))));
  byId("finals").replaceChildren(...points.map(({ group, final, x }, i) => element("tr", {},
    ...[group.contender, group.seeds.length, final.text, amount(x), front.includes(i) ? "yes" : "no"].map(
      (text, k) => element("td", { textContent: text, className: k > 0 && k < 4 ? "number" : "" })))));
}

// --- sample texts ---

function showSamples() {
  const seed = Number(byId("seed").value), prompt = Number(byId("prompt").value);
  const rows = chosen(content.samples).filter((row) => row.seed === seed && stepName(row) === byId("step").value);
  const of = (row) => row.texts.filter((text) => text.prompt === prompts[prompt]);
  const temperatures = [...new Set(rows.flatMap((row) => of(row).map((text) => text.temperature)))];
  byId("texts-head").replaceChildren(element("tr", {}, element("th", { textContent: "contender" }),
    ...temperatures.map((t) => element("th", { textContent: `temperature ${t}${t ? "" : " (most probable tokens)"}` }))));
  byId("texts").replaceChildren(...rows.map((row) => element("tr", {}, element("th", { scope: "row", textContent: row.contender }),
    ...of(row).map((text) => {
      const shown = text.text.trim() ? text.text : element("i", { textContent: " (only white space)" });
      const cell = element("td", { className: "sample" }, element("b", { textContent: text.prompt }), shown);
      cell.dataset.label = `temperature ${text.temperature}`;
      return cell;
    }))));
}
const stepName = ({ step }) => step === null ? "after the last update" : `after ${step} updates`;
const prompts = [...new Set(content.samples.flatMap(({ texts }) => texts.map(({ prompt }) => prompt)))];

// --- the page ---

function show() {
  const groups = chosen(content.groups);
  byId("status").textContent = `${groups.length} of ${content.contenders.length} contenders, ${budget().title}, ${metric().title}. Reference: ${content.reference}.`;
  showSamples();
  return Promise.all([showCurves(groups), showDifferences(), showFront(groups)]);
}

/** The line and symbol of a contender, which are the key of the figures. */
function swatch({ colour, dash, symbol }) {
  const lengths = { solid: "", dash: "7 3", dashdot: "7 3 2 3", dot: "2 3" };
  return `<svg width="36" height="14" viewBox="0 0 36 14" aria-hidden="true"><path d="M0 7H36" stroke="${colour}" stroke-width="2" stroke-dasharray="${lengths[dash]}"/><path d="${SYMBOLS[symbol]}" transform="translate(18 7)" fill="${colour}"/></svg>`;
}
// Drawn about the origin, in Plotly's shapes.
const SYMBOLS = {
  "circle": "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z", "square": "M-4.5 -4.5H4.5V4.5H-4.5Z", "diamond": "M0 -6L6 0L0 6L-6 0Z",
  "triangle-up": "M0 -6L5.5 4H-5.5Z", "triangle-down": "M0 6L5.5 -4H-5.5Z", "cross": "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
  "x": "M-6 -3L-3 -6L0 -3L3 -6L6 -3L3 0L6 3L3 6L0 3L-3 6L-6 3L-3 0Z",
  "star": "M0 -6L1.5 -2L6 -2L2.3 .7L3.7 5L0 2.4L-3.7 5L-2.3 .7L-6 -2L-1.5 -2Z",
};

function start() {
  fill("budget", content.budgets.map(({ key, title }) => [key, title]));
  fill("metric", content.metrics.map(({ key, title }) => [key, title]));
  const known = Object.entries(COSTS).filter(([cost]) => content.groups.every((group) => finite(group.costs[cost]).length));
  fill("axis", known.filter(([cost]) => cost !== "parameters"));
  fill("cost", known.filter(([cost]) => cost !== "tokens"));
  fill("prompt", prompts.map((prompt, i) => [i, prompt || "(none: the beginning of a text)"]));
  fill("seed", [...new Set(content.samples.map(({ seed }) => seed))].map((seed) => [seed, seed]));
  const ordered = [...content.samples].sort((a, b) => (a.step ?? -1) - (b.step ?? -1));
  fill("step", [...new Set(ordered.map(stepName))].map((name) => [name, name]));
  byId("samples").hidden = !content.samples.length;
  byId("contenders").replaceChildren(...content.contenders.map((contender) => {
    const box = element("input", { type: "checkbox", checked: true });
    const key = element("span", { innerHTML: swatch(contender) });
    return element("label", {}, box, key, contender.name);
  }));
  const boxes = [...byId("contenders").querySelectorAll("input")];
  const check = (isOn) => { boxes.forEach((box, i) => { box.checked = isOn(content.contenders[i]); }); show(); };
  byId("all").addEventListener("click", () => check(() => true));
  byId("none").addEventListener("click", () => check(({ is_reference }) => is_reference));
  document.querySelectorAll("section select, section input").forEach((control) => control.addEventListener("change", show));
  show();
}

start();
})();
