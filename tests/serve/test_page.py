"""The page of the server, in a browser."""

import asyncio
import math

import pytest

from tests.support.browser import needs_browser, read_url, with_reader
from tests.support.serving import ask

pytestmark = needs_browser

# The browser's own clock does not run while it waits for the server, so the reader lets the server wait.
_UNTIL = """
  const until = async (ready) => { for (let i = 0; i < 300 && !ready(); i++) await fetch("/wait"); };
  await until(() => document.querySelectorAll("#models input").length === 2);
  const generate = async () => { byId("generate").click(); await until(() => byId("stop").disabled); };
  const cards = () => [...document.querySelectorAll("article")];
  const tokens = (card) => [...card.querySelectorAll(".token:not(.end)")].map((one) => one.textContent).join("");
  const set = (values) => Object.entries(values).forEach(([id, value]) => { byId(id).value = value; });
  set({ prompt: "a wave", max_tokens: 12, temperature: 0, seed: 3 });
"""


@pytest.fixture
def read(server, tmp_path):
    """A function that opens the page with the body of a reader, see `read_page`."""
    return opener(server, tmp_path)


@pytest.fixture
def read_chat(chat_server, tmp_path):
    """The same for a server of which one model was trained on dialogues."""
    return opener(chat_server, tmp_path)


def opener(server, tmp_path):
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    page, routes = ask(server, "/")[2], server.config.app.routes

    async def wait(request):
        await asyncio.sleep(0.05)
        return Response()

    def open_page(reader, **options):
        async def show(request):
            return HTMLResponse(with_reader(page, _UNTIL + reader))

        routes[:0] = [Route("/with_reader", show), Route("/wait", wait)]
        seen = read_url(f"{server.url}/with_reader", tmp_path, **options)
        del routes[:2]
        assert seen["errors"] == []
        return seen

    return open_page


def completion(server, **fields):
    body = {"model": "wave", "prompt": "a wave", "max_tokens": 12, "temperature": 0, "seed": 3, "logprobs": 8, **fields}
    return ask(server, "/v1/completions", body)[2]["choices"]


def test_texts_of_all_models_are_shown_side_by_side(server, read):
    seen = read("""
      await generate();
      seen.titles = cards().map((card) => card.querySelector("h2").textContent);
      seen.texts = cards().map(tokens);
      seen.about = cards().map((card) => card.querySelector("p").textContent);
      seen.tops = cards().map((card) => card.getBoundingClientRect().top);
      seen.links = [...document.querySelectorAll("article a")].map((a) => a.getAttribute("href"));
    """)
    assert seen["titles"] == ["wave", "gravity"]
    for name, text, about in zip(seen["titles"], seen["texts"], seen["about"], strict=True):
        (expected,) = completion(server, model=name)
        assert text == expected["text"]
        logprobs = expected["logprobs"]["token_logprobs"]
        assert f"perplexity of this text {math.exp(-sum(logprobs) / len(logprobs)):.1f}" in about
    assert seen["tops"][0] == seen["tops"][1]
    assert len(seen["links"]) == 1
    assert seen["links"][0].startswith("/coordinates?model=gravity&text=a+wave")


def test_a_token_shows_its_probability_and_its_alternatives(server, read):
    seen = read("""
      byId("temperature").value = 1;
      await generate();
      const [card] = cards();
      const token = card.querySelectorAll(".token")[2];
      token.dispatchEvent(new MouseEvent("mouseenter"));
      seen.line = card.querySelector(".detail p").textContent;
      seen.rows = [...card.querySelectorAll("tr")].map((row) => [row.cells[0].textContent, row.cells[1].textContent]);
      seen.pressed = token.getAttribute("aria-pressed");
      token.focus();
      token.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
      seen.next = card.querySelector(".detail p").textContent;
      seen.focused = document.activeElement === card.querySelectorAll(".token")[3];
    """)
    found = completion(server, temperature=1)[0]["logprobs"]
    percent = f"{100 * math.exp(found['token_logprobs'][2]):.1f} %"
    assert seen["line"].startswith("token 3: ")
    assert seen["line"].endswith(percent) or "0.0" in percent
    assert len(seen["rows"]) == len(found["top_logprobs"][2])
    best = max(found["top_logprobs"][2].values())
    assert seen["rows"][0][1] == f"{100 * math.exp(best):.1f} %"
    assert seen["pressed"] == "true"
    assert seen["next"].startswith("token 4: ")
    assert seen["focused"]


def test_an_alternative_continues_the_text(server, read):
    seen = read("""
      await generate();
      const [card] = cards();
      let button = null, index = 0;
      for (; !button; index++) {
        card.querySelectorAll(".token")[index].click();
        button = [...card.querySelectorAll("td button")].find((one) => /^[!-~]$/.test(one.textContent));
      }
      seen.before = [...card.querySelectorAll(".token")].slice(0, index - 1).map((t) => t.textContent).join("");
      seen.token = button.textContent;
      button.click();
      await until(() => byId("stop").disabled);
      seen.prompt = card.querySelector(".prompt").textContent;
      seen.text = tokens(card);
      seen.cards = cards().length;
    """)
    if "\u00b7" not in seen["before"]:
        assert seen["prompt"] == f"a wave{seen['before']}{seen['token']}"
    (expected,) = completion(server, prompt=seen["prompt"])
    assert seen["text"] == expected["text"]
    assert seen["cards"] == 2


def test_several_texts_of_a_model(server, read):
    seen = read("""
      set({ n: 3, temperature: 1.5 });
      document.querySelector("#models input[value=gravity]").checked = false;
      await generate();
      seen.titles = cards().map((card) => card.querySelector("h2").textContent);
      seen.texts = cards().map(tokens);
    """)
    assert seen["titles"] == ["wave, text 1", "wave, text 2", "wave, text 3"]
    assert seen["texts"] == [choice["text"] for choice in completion(server, n=3, temperature=1.5)]


def test_a_chat(chat_server, read_chat):
    seen = read_chat("""
      const mode = (name) => document.querySelector(`input[name=mode][value=${name}]`).click();
      seen.hidden = byId("modes").hidden;
      mode("chat");
      seen.disabled = [...document.querySelectorAll("#models input")].map((box) => box.disabled);
      seen.button = byId("generate").textContent;
      byId("n").value = 3;
      const say = async (text) => { set({ prompt: text, max_tokens: 12, temperature: 1, seed: 3 }); await generate(); };
      await say("sun");
      await say("a".repeat(200));
      seen.wrong = cards()[0].querySelector(".wrong").textContent;
      await say("moon");
      await say("");
      seen.status = byId("status").textContent;
      seen.titles = cards().map((card) => card.querySelector("h2").textContent);
      const parts = (message) => ["b", "span"].map((name) => message.querySelector(name).textContent);
      seen.messages = [...document.querySelectorAll(".message")].map(parts);
      byId("new").click();
      seen.after_new = document.querySelectorAll(".message").length;
      mode("text");
      set({ prompt: "sun", n: 1 });
      await generate();
      seen.cards = cards().map((card) => card.querySelector("h2").textContent);
    """)
    assert (seen["hidden"], seen["disabled"], seen["button"]) == (False, [False, True], "Send")
    assert (seen["titles"], seen["after_new"], seen["status"]) == (["talk"], 0, "write a message")
    assert "more than the 96 tokens of the model's context" in seen["wrong"]
    first, failed, third = (seen["messages"][i : i + 2] for i in (0, 2, 4))
    messages, same = [{"role": "user", "content": "sun"}], {"max_tokens": 12, "temperature": 1, "seed": 3}
    for found in (first, third):
        body = {"model": "talk", "messages": messages, **same}
        answer = ask(chat_server, "/v1/chat/completions", body)[2]["choices"][0]["message"]
        assert found == [["user", messages[-1]["content"]], ["assistant", answer["content"]]]
        messages += [answer | {}, {"role": "user", "content": "moon"}]
        messages[-2].pop("refusal")
    assert failed[0] == ["user", "a" * 200]
    assert seen["cards"] == ["talk", "wave"]


def test_an_error_is_shown(read):
    seen = read("""
      seen.modes = byId("modes").hidden;
      byId("max_tokens").value = 1000;
      await generate();
      seen.errors_shown = cards().map((card) => card.querySelector(".wrong").textContent);
      document.querySelectorAll("#models input").forEach((box) => { box.checked = false; });
      byId("generate").click();
      seen.status = byId("status").textContent;
    """)
    assert all("more than the 64 tokens of the model's context" in error for error in seen["errors_shown"])
    assert seen["status"] == "choose at least one model"
    assert seen["modes"], "no model was trained on dialogues"


def test_nothing_is_wider_than_a_phone(read):
    seen = read(
        "await generate(); cards()[0].querySelector('.token').click();"
        "seen.width = document.documentElement.scrollWidth; seen.window = innerWidth;",
        size=(500, 900),
    )
    assert seen["width"] <= seen["window"]


def test_names_and_labels(read):
    """Every control has a name, and every token a label."""
    seen = read("""
      await generate();
      seen.unnamed = [...document.querySelectorAll("input, textarea")].filter((one) => !one.labels.length).length;
      seen.labels = [...document.querySelectorAll(".token")].map((token) => token.getAttribute("aria-label"));
      seen.stops = cards().map((card) => card.querySelectorAll('.token[tabindex="0"]').length);
      seen.language = document.documentElement.lang;
    """)
    assert seen["unnamed"] == 0
    assert all(label.endswith(" %") for label in seen["labels"])
    assert seen["stops"] == [1, 1]
    assert seen["language"] == "en"


def test_the_page_asks_nobody_else(server):
    _, headers, page = ask(server, "/")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "http://" not in page
    assert "https://" not in page


def test_coordinates(server):
    pytest.importorskip("plotly", reason="needs the extra coordinates")
    status, _, page = ask(server, "/coordinates?model=gravity&text=a%20wave")
    assert status == 200
    assert "NGT Coordinate Space" in page
    status, _, answer = ask(server, "/coordinates?model=wave&text=a")
    assert (status, answer["error"]["param"]) == (400, "model")
    assert answer["error"]["message"].startswith("model: wave is of base waveresnet, which has no coordinates")
    assert ask(server, "/coordinates?model=gravity&text=")[0] == 400
    assert ask(server, "/coordinates?text=a")[0] == 404
