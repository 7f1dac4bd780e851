// The chat of the page; page.js comes before it.
const dialogues = new Map(); // by the names of the models

function isChat() {
  return document.querySelector("input[name=mode]:checked").value === "chat";
}

// The messages that have been exchanged with one model.
class Dialogue {
  constructor(model) {
    Object.assign(this, { model, messages: [] });
    this.log = make("div");
    this.log.setAttribute("role", "log");
    this.log.setAttribute("aria-label", `dialogue with ${model.id}`);
    this.element = make("article", {}, make("h2", { textContent: model.id }), this.log);
  }

  show(role, content) {
    const text = make("span", { textContent: content });
    this.log.append(make("div", { className: `message ${role}` }, make("b", { textContent: role }), text));
    return text;
  }

  // Sends a message with all before it, and shows the answer while it grows.
  async send(content, settings) {
    const messages = [...this.messages, { role: "user", content }];
    this.show("user", content);
    const shown = this.show("assistant", "");
    const fields = { ...settings, model: this.model.id, messages };
    const read = async (signal) => {
      for await (const choice of choicesOf("/v1/chat/completions", fields, signal)) shown.textContent += choice.delta.content;
    };
    let failure = "";
    await whileRunning(read, (message) => { failure = message; });
    if (failure) shown.replaceWith(make("span", { className: "wrong", textContent: failure }));
    else this.messages = [...messages, { role: "assistant", content: shown.textContent }];
  }
}

function sendToAll(chosen, settings) {
  const content = byId("prompt").value;
  if (!content) byId("status").textContent = "write a message";
  if (!content || !chosen.length) return;
  byId("prompt").value = "";
  for (const model of chosen) {
    if (!dialogues.has(model.id)) {
      dialogues.set(model.id, new Dialogue(model));
      byId("texts").append(dialogues.get(model.id).element);
    }
    dialogues.get(model.id).send(content, settings);
  }
}

function clear() {
  running.forEach((control) => control.abort());
  dialogues.clear();
  byId("texts").replaceChildren();
}

function changeMode() {
  clear();
  const chats = isChat();
  byId("prompt-label").textContent = chats ? "Message" : "Prompt";
  byId("generate").textContent = chats ? "Send" : "Generate";
  byId("prompt").placeholder = chats ? "" : placeholder;
  byId("new").hidden = byId("help-chat").hidden = !chats;
  byId("n-label").hidden = byId("help-text").hidden = chats;
  for (const model of models) boxOf(model).disabled = chats && !model.has_chat;
}

const { placeholder } = byId("prompt");
document.querySelectorAll("input[name=mode]").forEach((input) => input.addEventListener("change", changeMode));
byId("new").addEventListener("click", clear);
