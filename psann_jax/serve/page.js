const byId = (id) => document.getElementById(id);
const N_ALTERNATIVES = 8;
const COORDINATES_TEXT = 2000; // characters; the page shows the first tokens only
const NUMBERS = ["max_tokens", "temperature", "top_p", "top_k", "seed"];
let models = [];
let running = []; // AbortControllers of the requests in progress

function make(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  return p >= 0.1 ? `${p.toFixed(1)} %` : p >= 0.001 ? `${p.toFixed(3)} %` : "< 0.001 %";
};
const visible = (token) => token.replace(/ /g, "\u2423").replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5");
const isText = (token) => !token.startsWith("bytes:");

// One generated text: its tokens, and the details of the one that is chosen.
class Card {
  constructor(model, prompt, settings, title) {
    Object.assign(this, { model, prompt, settings, turn: 0 });
    this.about = make("p");
    this.text = make("div", { className: "text" });
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-label", `text of ${model.id}`);
    this.detail = make("div", { className: "detail" });
    this.element = make("article", {}, make("h2", { textContent: title }), this.about, this.text, this.detail);
    this.text.addEventListener("keydown", (event) => this.move(event));
    this.restart("");
  }

  // Empties the card; the text then continues the prompt and what is kept of the text.
  restart(kept) {
    this.turn += 1;
    this.kept = kept;
    this.nKept = this.nShown = Array.from(kept).length;
    this.tokens = [];
    this.textAfter = kept;
    this.pressed = -1;
    this.began = performance.now();
    this.text.replaceChildren(make("span", { className: "prompt", textContent: this.prompt + kept }));
    this.detail.replaceChildren(make("p", { textContent: "Point at a token to see its probability." }));
    this.describe("");
  }

  // Adds the tokens of one event. Of tokens that are parts of one character, the last one shows it. A token may begin
  // before what an earlier event has shown, if its bytes are no UTF-8.
  add(choice) {
    this.textAfter += choice.text;
    const found = choice.logprobs;
    const starts = [...found.text_offset.map((offset) => offset + this.nKept), Infinity];
    found.tokens.forEach((token, i) => {
      const text = codePoints(this.textAfter, this.nShown, starts[i + 1]);
      this.nShown += Array.from(text).length;
      this.addToken(token, found.token_logprobs[i], found.top_logprobs[i], starts[i], text);
    });
    if (choice.finish_reason) this.describe(choice.finish_reason === "stop" ? "the model ended the text" : "all tokens used");
  }

  addToken(name, logprob, top, offset, text) {
    const index = this.tokens.length;
    const isEnd = text === "";
    const kind = isEnd ? "token end" : text.includes("\n") ? "token newline" : "token";
    const shown = isEnd ? (isText(name) ? name : "\u00b7") : text;
    const span = make("span", { className: kind, textContent: shown, tabIndex: index ? -1 : 0 });
    span.setAttribute("role", "button");
    span.setAttribute("aria-pressed", "false");
    span.setAttribute("aria-label", `${visible(name)}, ${percent(logprob)}`);
    span.style.setProperty("--doubt", Math.min(0.6, -logprob / 15).toFixed(3));
    span.addEventListener("mouseenter", () => this.show(index));
    span.addEventListener("focus", () => this.show(index));
    span.addEventListener("click", () => this.show(index));
    this.tokens.push({ name, logprob, top, offset, span });
    this.text.append(span);
  }

  show(index) {
    if (this.tokens[this.pressed]) this.tokens[this.pressed].span.setAttribute("aria-pressed", "false");
    this.pressed = index;
    const { name, logprob, top, offset, span } = this.tokens[index];
    span.setAttribute("aria-pressed", "true");
    const rows = Object.entries(top).map(([other, value]) => {
      const cell = make("td");
      if (other === name || !isText(other)) cell.textContent = visible(other);
      else {
        const button = make("button", { type: "button", textContent: visible(other) });
        button.title = "continue from here with this token";
        button.addEventListener("click", () => this.branch(offset, other));
        cell.append(button);
      }
      const bar = make("span", { className: "bar" });
      bar.style.width = `${100 * Math.exp(value)}%`;
      return make("tr", { className: other === name ? "chosen" : "" }, cell, make("td", { textContent: percent(value) }), make("td", {}, bar));
    });
    const line = make("p", {}, `token ${index + 1}: `, make("b", { textContent: visible(name) }), `, ${percent(logprob)}`);
    this.detail.replaceChildren(line, make("table", {}, make("tbody", {}, ...rows)));
  }

  move(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1 };
    const last = this.tokens.length - 1;
    const to = event.key === "Home" ? 0 : event.key === "End" ? last : this.pressed + (steps[event.key] || NaN);
    if (!this.tokens[to]) return;
    event.preventDefault();
    if (this.tokens[this.pressed]) this.tokens[this.pressed].span.tabIndex = -1;
    this.tokens[to].span.tabIndex = 0;
    this.tokens[to].span.focus();
  }

  describe(finish) {
    const { base, step, n_params } = this.model;
    const parts = [`${base}, step ${step.toLocaleString("en")}, ${(n_params / 1e6).toFixed(1)} M parameters`];
    const n = this.tokens.length;
    if (finish && n) {
      const mean = this.tokens.reduce((sum, token) => sum + token.logprob, 0) / n;
      const rate = n / ((performance.now() - this.began) / 1000);
      parts.push(`${n} tokens, ${rate.toFixed(0)} per second`, `perplexity of this text ${Math.exp(-mean).toFixed(1)}`, finish);
    }
    this.about.replaceChildren(parts.join("; "));
    if (finish && this.model.has_coordinates) {
      const text = (this.prompt + this.textAfter).slice(0, COORDINATES_TEXT);
      const query = new URLSearchParams({ model: this.model.id, text });
      const link = make("a", { href: `/coordinates?${query}`, target: "_blank", textContent: "coordinates of this text" });
      this.about.append("; ", link);
    }
  }

  fail(message) {
    this.detail.replaceChildren(make("p", { className: "wrong", textContent: message }));
  }

  branch(offset, token) {
    this.restart(codePoints(this.textAfter, 0, offset) + token);
    run([this], { ...this.settings, n: 1 });
  }
}

// Offsets of the server count characters of Unicode, strings here are UTF-16.
const codePoints = (text, from, to) => Array.from(text).slice(from, to).join("");

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) if (part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

// Sends one request and yields the choices of its events.
async function* choicesOf(path, fields, signal) {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ ...fields, stream: true });
  const response = await fetch(path, { method: "POST", headers, body, signal });
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const event of eventsOf(response)) {
    if (event.error) throw new Error(event.error.message);
    yield* event.choices;
  }
}

// Shows the texts of one request in the cards, one for each of them.
async function stream(cards, settings, signal) {
  const [card] = cards;
  const turns = cards.map((one) => one.turn);
  const fields = { ...settings, model: card.model.id, prompt: card.prompt + card.kept, logprobs: N_ALTERNATIVES };
  for await (const choice of choicesOf("/v1/completions", fields, signal)) {
    const one = cards[choice.index];
    if (one.turn === turns[choice.index]) one.add(choice); // it may have been restarted from an alternative
  }
}

// Does something that can be stopped; `fail` gets what went wrong, "" if it was stopped.
async function whileRunning(work, fail) {
  const control = new AbortController();
  running.push(control);
  update();
  try {
    await work(control.signal);
  } catch (error) {
    fail(error.name === "AbortError" ? "" : error.message);
  }
  running = running.filter((other) => other !== control);
  update();
}

const run = (cards, settings) => whileRunning(
  (signal) => stream(cards, settings, signal),
  (message) => cards.forEach((card) => (message ? card.fail(message) : card.describe("stopped"))),
);

function update() {
  byId("stop").disabled = running.length === 0;
  byId("generate").disabled = isChat() && running.length > 0; // a message follows the answer to the one before
  byId("status").textContent = running.length ? "generating" : "";
}

const boxOf = (model) => document.querySelector(`#models input[value="${CSS.escape(model.id)}"]`);

function chosenModels() {
  return models.filter((model) => {
    const box = boxOf(model);
    return box.checked && !box.disabled;
  });
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  running.forEach((control) => control.abort());
  const settings = Object.fromEntries(NUMBERS.map((name) => [name, Number(byId(name).value)]));
  const chosen = chosenModels();
  if (!chosen.length) byId("status").textContent = "choose at least one model";
  if (isChat()) {
    sendToAll(chosen, settings);
    return;
  }
  settings.n = Number(byId("n").value);
  byId("texts").replaceChildren();
  for (const model of chosen) {
    const cards = Array.from({ length: settings.n }, (_, i) => {
      return new Card(model, byId("prompt").value, settings, settings.n > 1 ? `${model.id}, text ${i + 1}` : model.id);
    });
    byId("texts").append(...cards.map((card) => card.element));
    run(cards, settings);
  }
});
byId("stop").addEventListener("click", () => running.forEach((control) => control.abort()));

async function start() {
  try {
    models = (await (await fetch("/v1/models")).json()).data;
  } catch (error) {
    byId("status").textContent = `the server does not answer: ${error.message}`;
    return;
  }
  for (const model of models) {
    const box = make("input", { type: "checkbox", value: model.id, checked: true });
    byId("models").append(make("label", {}, box, `${model.id} (${model.base}, ${model.max_model_len} tokens)`));
  }
  byId("modes").hidden = !models.some((model) => model.has_chat);
}
start();
