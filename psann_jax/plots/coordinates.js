// The program of coordinates.html. `state` holds what is displayed; `show` draws it.
"use strict";
(() => {
const STRONGEST = 6;  // tokens connected to the chosen one by a line
const LISTED = 15;
const byId = (id) => document.getElementById(id);
const content = JSON.parse(byId("content").textContent);
const plot = byId("plot");
const { tokens, mass, points, variance, maxima } = content;
const nLayers = maxima.length;
const weights = content.weights.map((layer) => Uint8Array.from(atob(layer), (c) => c.charCodeAt(0)));
const state = { layer: nLayers, token: null };

const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;
const total = (row) => row.reduce((sum, value) => sum + value, 0);
// Plotly interprets a few HTML tags in its texts.
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const range = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);

/** The attention weights of the chosen token in the displayed layer; null if there is no token or no layer. */
function attention() {
  if (state.token === null || state.layer === 0) return null;
  const row = (state.token * (state.token + 1)) / 2;
  const unit = maxima[state.layer - 1][state.token] / 255;
  return tokens.map((_, j) => (j > state.token ? 0 : weights[state.layer - 1][row + j] * unit));
}

/** Indices of the largest positive values, in descending order. */
function largest(values, count) {
  const positive = [...values.keys()].filter((i) => values[i] > 0);
  return positive.sort((i, j) => values[j] - values[i]).slice(0, count);
}

function hoverTexts(given) {
  const [x, y, z] = points[state.layer];
  return tokens.map((token, i) => [
    `<b>${escaped(token)}</b>`,
    `position ${i} of ${tokens.length - 1}`,
    ...[x, y, z].map((axis, k) => `PC${k + 1} ${axis[i].toFixed(3)}`),
    `Mass ${mass[i].toFixed(4)}`,
    ...(given ? [`Attention ${percent(given[i])}`] : []),
  ].join("<br>"));
}

/** Scales values to the range from 0 to 1. */
function minmax(values) {
  const [low, high] = range(values);
  return values.map((v) => (high > low ? (v - low) / (high - low) : 0));
}

/** A diamond for the chosen token, and open circles for later tokens, which it cannot attend to. */
function symbol(i) {
  if (state.token === null || i < state.token) return "circle";
  return i === state.token ? "diamond" : "circle-open";
}

function tokenTrace(given) {
  const [x, y, z] = points[state.layer];
  return {
    type: "scatter3d", mode: "markers", name: "tokens", x, y, z,
    hoverinfo: "text", hovertext: hoverTexts(given),
    marker: {
      size: minmax(mass).map((m) => 4 + 20 * m), color: given ?? mass, colorscale: "Viridis", opacity: 0.85,
      cmin: given ? 0 : undefined, cauto: !given, cmax: given ? Math.max(...given) : undefined,
      symbol: tokens.map((_, i) => symbol(i)),
      line: { color: "white", width: 0.5 },
      colorbar: { title: { text: given ? "Attention" : "Mass" }, tickformat: given ? ".1%" : "", len: 0.7, thickness: 18 },
    },
  };
}

/** Lines from the chosen token to the tokens it attends to most. */
function lineTrace(given) {
  const ends = given ? largest(given, STRONGEST).filter((i) => i !== state.token) : [];
  const [x, y, z] = points[state.layer].map((axis) => ends.flatMap((i) => [axis[state.token], axis[i], null]));
  return { type: "scatter3d", mode: "lines", name: "strongest", x, y, z, hoverinfo: "skip", line: { color: "#444", width: 3 } };
}

/** Labels of all tokens if requested, otherwise of the chosen one and the tokens it attends to most. */
function labels(given) {
  const [x, y, z] = points[state.layer];
  const at = (i) => ({ x: x[i], y: y[i], z: z[i], text: escaped(tokens[i]), font: { size: 12, color: "#111" } });
  if (byId("labels").checked) return tokens.map((_, i) => ({ ...at(i), showarrow: false, yshift: 11 }));
  if (state.token === null) return [];
  const ends = given ? largest(given, STRONGEST).filter((i) => i !== state.token) : [];
  // Each label is moved in its own direction, because these tokens are often close together.
  return [state.token, ...ends].map((i, k, all) => {
    const angle = (2 * Math.PI * k) / all.length - Math.PI / 2;
    const far = k === 0 ? 90 : 60;
    return {
      ...at(i), ax: far * Math.cos(angle), ay: far * Math.sin(angle), arrowhead: 0, arrowwidth: 1, arrowcolor: "#888",
      bgcolor: "rgba(255,255,255,.8)", bordercolor: k === 0 ? "#111" : "rgba(0,0,0,0)", borderpad: 2,
    };
  });
}

function axis(k) {
  const shown = byId("same-axes").checked ? points : [points[state.layer]];
  const [low, high] = range(shown.flatMap((layer) => layer[k]));
  const margin = 0.06 * (high - low) || 1;
  return {
    title: { text: `PC${k + 1} (${percent(variance[nLayers][k])})` }, range: [low - margin, high + margin],
    backgroundcolor: "#fff", gridcolor: "#ddd", zerolinecolor: "#bbb", showspikes: false,
  };
}

function explained() {
  const fit = variance[nLayers];
  const each = fit.map((fraction, k) => `PC${k + 1} ${percent(fraction)}`).join(", ");
  const lines = [`Explained variance: ${each}, total ${percent(total(fit))}`];
  const here = percent(total(variance[state.layer]));
  if (state.layer !== nLayers) lines.push(`of layer ${nLayers}, where the axes are fitted; of the layer shown: ${here}`);
  return lines.join("<br>");
}

function layout(given) {
  return {
    title: { text: document.title, x: 0.5, subtitle: { text: escaped(content.subtitle) } },
    uirevision: "keep", margin: { l: 0, r: 0, t: 60, b: 40 }, showlegend: false,
    hoverlabel: { align: "left", bgcolor: "#fff", bordercolor: "#444", font: { color: "#111" } },
    scene: {
      uirevision: "keep", xaxis: axis(0), yaxis: axis(1), zaxis: axis(2), aspectmode: "auto",
      camera: { eye: { x: 1.35, y: 1.35, z: 0.9 }, center: { x: 0, y: 0, z: -0.2 } },
      annotations: labels(given),
    },
    annotations: [{
      text: explained(), showarrow: false, align: "left", font: { size: 12 },
      xref: "paper", yref: "paper", x: 0, y: 0, xanchor: "left", yanchor: "top",
    }],
  };
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function tokenButton(i) {
  return element("button", { type: "button", textContent: tokens[i], title: `position ${i}`, onclick: () => choose(i) });
}

/** Title, note, token indices and values of the list. */
function listed(given) {
  if (given) {
    const top = largest(given, LISTED);
    const sum = percent(total(top.map((i) => given[i])));
    const title = `What \u201c${tokens[state.token]}\u201d (position ${state.token}) attends to`;
    return [title, `Layer ${state.layer}, mean over heads. These ${top.length} tokens have ${sum} of the weight.`, top, given];
  }
  // Equal tokens have equal masses, so each token is listed once.
  const firsts = mass.map((m, i) => (tokens.indexOf(tokens[i]) === i ? m : 0));
  const note = state.token === null
    ? `Of ${tokens.length} tokens, at their first positions. A token has the same mass at all positions and in all layers.`
    : "There is no attention before layer 1: choose a later layer.";
  return ["The heaviest tokens", note, largest(firsts, LISTED), mass];
}

function showList(given) {
  const [title, note, indices, values] = listed(given);
  const lengths = given ?? minmax(mass);
  byId("list-title").textContent = title;
  byId("list-note").textContent = note;
  byId("list-value").textContent = given ? "weight" : "mass";
  byId("list").replaceChildren(...indices.map((i) => element("tr", {},
    element("td", {}, tokenButton(i)), element("td", { textContent: i }),
    element("td", { textContent: given ? percent(values[i]) : values[i].toFixed(4) }),
    element("td", { className: "bar" }, element("i", { style: `width: ${(100 * lengths[i]) / lengths[indices[0]]}%` })),
  )));
}

function showText(given) {
  const thickness = given ? given.map((w) => w / Math.max(...given)) : minmax(mass);
  byId("text").querySelectorAll("button").forEach((button, i) => {
    button.style.setProperty("--value", `${8 * thickness[i]}px`);
    button.setAttribute("aria-pressed", i === state.token);
  });
  byId("text-note").textContent = `The text. A thicker line means ${given ? "more attention" : "a heavier token"}.`;
}

function show() {
  const given = attention();
  byId("layer-name").textContent = state.layer ? `${state.layer} of ${nLayers}: after layer ${state.layer}` : "0: initial coordinates of the positions";
  showList(given);
  showText(given);
  return Plotly.react(plot, [tokenTrace(given), lineTrace(given)], layout(given), { responsive: true, displaylogo: false, showSendToCloud: false });
}

function choose(token) {
  state.token = token === state.token ? null : token;
  show();
}

/**
 * Plotly reports a click on a 3D point at every frame while the button is down, also while the plot is rotated.
 * Here a click is a press and a release at the same position. A click beside all points clears the choice.
 */
function chooseByClick() {
  let under = null, pressed = null;
  const enter = ({ points: [point] }) => { under = point.curveNumber === 0 ? point.pointNumber : null; };
  plot.on("plotly_hover", enter);
  plot.on("plotly_click", enter);  // for touch screens, where nothing hovers
  plot.on("plotly_unhover", () => { under = null; });
  plot.addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; }, true);
  plot.addEventListener("pointerup", (event) => {
    const moved = pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]);
    const token = under ?? state.token;
    if (pressed && moved < 4 && token !== null && !event.target.closest(".modebar")) choose(token);
    pressed = null;
  }, true);
}

function start() {
  const slider = byId("layer");
  slider.max = nLayers;
  slider.value = nLayers;
  slider.addEventListener("input", () => { state.layer = Number(slider.value); show(); });
  for (const id of ["same-axes", "labels"]) byId(id).addEventListener("change", show);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.token !== null) choose(state.token);
  });
  byId("text").append(element("p", { id: "text-note" }));
  tokens.forEach((token, i) => byId("text").append(tokenButton(i), ...(token.includes("\u21b5") ? [element("br")] : [])));
  show().then(chooseByClick);
}

start();
})();
