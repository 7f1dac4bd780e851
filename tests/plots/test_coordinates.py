"""The coordinates page: its numbers, its text, errors, and its behaviour in a browser."""

import base64
import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.cli import coordinates as command
from psann_jax.cli.program import run_program
from psann_jax.config.io import default_config, parse
from psann_jax.plots.coordinates import page, page_content, visible
from psann_jax.plots.evolution import Evolution, project
from psann_jax.runs.coordinates import DEFAULT_TEXT, evolve, write_coordinates
from psann_jax.runs.restore import load_text_run
from psann_jax.utils.errors import UserError
from tests.support.browser import needs_browser, read_page
from tests.support.saved import TOKENIZER, save_run
from tests.support.tiny import tiny_config

TEXT = "the moon falls </script>\n<b>\u00e9"
IDS = [TOKENIZER.bos_id, *TOKENIZER.encode(TEXT)]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a gravity model with random parameters."""
    tmp_path = tmp_path_factory.mktemp("ngt")
    config = default_config("ngt")
    config.model.update(d_model=16, n_layers=2, n_heads=2, d_mlp=32, d_coord=6, d_head_coord=4, variant="attractive")
    config.data.max_length = 64
    config.data.tokenizer.kind = "bytes"
    config.train.update(batch_tokens=256, precision="fp32")
    save_run(tmp_path / "run", parse(config), {5: 1.0})
    return tmp_path / "run"


@pytest.fixture(scope="module")
def run(workdir):
    """The loaded run."""
    return load_text_run(workdir)


def embedded(path_or_text):
    """The data embedded in a page."""
    text = path_or_text if isinstance(path_or_text, str) else path_or_text.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)[1])


def decoded(content):
    """The attention weights (N, L, L) in the data of a page."""
    L = len(content["tokens"])
    weights = np.zeros((len(content["weights"]), L, L))
    for layer, text in zip(weights, content["weights"], strict=True):
        layer[np.tril_indices(L)] = np.frombuffer(base64.b64decode(text), np.uint8)
    return weights / 255 * np.array(content["maxima"])[..., None]


def random_evolution(n_layers, L, C=5, seed=0):
    """An evolution with random values."""
    rng = np.random.default_rng(seed)
    weights = np.tril(rng.random((n_layers, L, L)) ** 4 + 1e-3)
    mass, coordinates = rng.random(L) + 0.1, rng.normal(size=(n_layers + 1, L, C))
    return Evolution(mass, coordinates, weights / weights.sum(-1, keepdims=True))


# --- numbers --------------------------------------------------------------------------------------------


def test_the_axes_are_the_principal_components_of_the_last_layer():
    z_KxLxC = np.random.default_rng(0).normal(size=(3, 40, 6)) * [5, 4, 3, 2, 1, 0.5] + 7
    projection = project(z_KxLxC)
    variances, vectors = np.linalg.eigh(np.cov(z_KxLxC[-1].T))
    vectors = vectors[:, ::-1][:, :3]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
    np.testing.assert_allclose(projection.points_KxLx3, (z_KxLxC - z_KxLxC[-1].mean(axis=0)) @ vectors, atol=1e-9)
    np.testing.assert_allclose(projection.variance_fractions_Kx3[-1], variances[::-1][:3] / variances.sum())
    along = np.diag(vectors.T @ np.cov(z_KxLxC[0].T) @ vectors) / np.trace(np.cov(z_KxLxC[0].T))
    np.testing.assert_allclose(projection.variance_fractions_Kx3[0], along)


def test_missing_axes_are_0():
    z_KxLxC = np.random.default_rng(0).normal(size=(2, 9, 2))
    z_KxLxC[0] = 1.0
    projection = project(z_KxLxC)
    assert projection.points_KxLx3.shape == (2, 9, 3)
    np.testing.assert_array_equal(projection.points_KxLx3[..., 2], 0)
    assert projection.variance_fractions_Kx3[1].sum() == pytest.approx(1)
    np.testing.assert_array_equal(projection.variance_fractions_Kx3[0], 0)
    np.testing.assert_array_equal(project(np.ones((2, 2, 1))).points_KxLx3, 0)


def test_evolve_returns_the_values_of_the_model(run):
    evolution = evolve(run, IDS)
    aux = jax.jit(lambda params: run.network.merge(params).hidden(jnp.array([IDS]))[2])(run.params)
    L = len(IDS)
    np.testing.assert_allclose(evolution.coordinates_KxLxC[0], run.params["coords"][:L], rtol=1e-6)
    np.testing.assert_allclose(evolution.coordinates_KxLxC[-1], aux["coordinates"][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(evolution.mass_L, aux["mass"][0], rtol=1e-6)
    assert evolution.weights_NxLxL.shape == (2, L, L)
    np.testing.assert_allclose(evolution.weights_NxLxL.sum(-1), 1, rtol=1e-5)
    assert not np.triu(evolution.weights_NxLxL, 1).any()


def test_the_page_has_the_numbers_of_the_evolution():
    evolution = random_evolution(n_layers=3, L=7)
    content = embedded(page(page_content(evolution, list("abcdefg"), "run")))
    projection = project(evolution.coordinates_KxLxC)
    np.testing.assert_allclose(content["points"], projection.points_KxLx3.swapaxes(1, 2), atol=1e-6)
    np.testing.assert_allclose(content["variance"], projection.variance_fractions_Kx3, atol=1e-6)
    np.testing.assert_allclose(content["mass"], evolution.mass_L, atol=1e-6)
    largest = evolution.weights_NxLxL.max(-1, keepdims=True)
    assert (np.abs(decoded(content) - evolution.weights_NxLxL) <= largest / 510 + 1e-6).all()


# --- text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (b" the", "\u2423the"),
        (b"\n\t", "\u21b5\u21e5"),
        ("\u00e9".encode(), "\u00e9"),
        (b"a\xc3", "a\\xc3"),
        (b"\x80", "\\x80"),
        (b"\0\r", "\\x00\\r"),
        ("\u202e\u00a0".encode(), "\\u202e\\xa0"),
        (b"</script>", "</script>"),
    ],
)
def test_every_token_is_visible(piece, shown):
    assert visible(piece) == shown


def test_the_page_shows_the_tokens_and_interprets_none_as_markup(run, tmp_path):
    write_coordinates(tmp_path / "page.html", run, TEXT, name="</script><i>")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    content = embedded(text)
    assert content["tokens"] == ["<bos>", *"the\u2423moon\u2423falls\u2423</script>\u21b5<b>", "\\xc3", "\\xa9"]
    assert content["subtitle"].startswith("</script><i>, step 5: 2 layers, 2 heads, attractive")
    assert text.count("</script>") == 3
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="(?!data:)', text), "the page must work offline"
    np.testing.assert_allclose(decoded(content), evolve(run, IDS).weights_NxLxL, atol=0.01)


def test_a_long_text_is_truncated_to_the_window_or_max_tokens(run, tmp_path):
    write_coordinates(tmp_path / "page.html", run)
    assert "".join(embedded(tmp_path / "page.html")["tokens"][1:]) == DEFAULT_TEXT[:63].replace(" ", "\u2423")
    write_coordinates(tmp_path / "page.html", run, TEXT, max_tokens=3)
    assert embedded(tmp_path / "page.html")["tokens"] == ["<bos>", "t", "h"]


def test_the_command_writes_to_the_workdir_or_to_out(workdir, tmp_path, capsys):
    command.main([f"--workdir={workdir}", "--text=su"])
    out, err = capsys.readouterr()
    assert out == f"{workdir / 'coordinates.html'}\n"
    assert "step 5" in err
    assert embedded(workdir / "coordinates.html")["subtitle"].startswith("run, step 5")
    command.main([f"--workdir={workdir}", "--text=moon", f"--out={tmp_path / 'a.html'}", "--max_tokens=3"])
    assert embedded(tmp_path / "a.html")["tokens"] == ["<bos>", "m", "o"]


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text="], "text: is '', which has no tokens"),
        (["--text=\udcff"], "text: is not UTF-8 text"),
        (["--max_tokens=1"], "max_tokens: is 1, must be from 2 to the 64 of the run's data.max_length"),
        (["--max_tokens=65"], "max_tokens: is 65, must be from 2 to the 64"),
        (["--max_tokens=few"], "--max_tokens: invalid int value: 'few'"),
        (["--out=/nowhere/page.html"], "/nowhere/page.html"),
        (["--checkpoint=9"], "{workdir}/checkpoints/step_9: no such checkpoint; there are [5]"),
        (["--workdir=/nowhere"], "/nowhere: there is no such directory"),
        (["--txt=a"], "--txt: unknown argument, did you mean --text?"),
    ],
)
def test_an_error_is_one_line_with_exit_code_2(workdir, run, capsys, monkeypatch, flags, message):
    if not any(flag.startswith(("--checkpoint", "--workdir")) for flag in flags):
        monkeypatch.setattr("psann_jax.runs.restore.load_text_run", lambda *args, **kwargs: run)
    with pytest.raises(SystemExit) as ended:
        run_program(["coordinates", f"--workdir={workdir}", *flags])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message.format(workdir=workdir)}")


def test_another_base_and_a_diverged_run_are_rejected(run, tmp_path):
    config = tiny_config(tmp_path, model__n_layers=1)
    save_run(tmp_path / "other", config, {1: 1.0})
    no_coordinates = r"^workdir: has a run of base waveresnet, which has no coordinates; ngt has them$"
    with pytest.raises(UserError, match=no_coordinates):
        write_coordinates(tmp_path / "page.html", load_text_run(tmp_path / "other"))
    diverged = replace(run, params=jax.tree.map(lambda p: p * jnp.nan, run.params))
    with pytest.raises(UserError, match=r"^workdir: has a run that has diverged: values at step 5"):
        write_coordinates(tmp_path / "page.html", diverged)
    assert not (tmp_path / "page.html").exists()


# --- in a browser ---------------------------------------------------------------------------------------

# Acts like a reader, and writes what is displayed into the document.
_READER = """
  const plot = byId("plot");
  const look = async (name) => {
    await settled();
    seen[name] = {
      data: plot.data.map(({ x, y, z, hovertext, marker }) => ({ x, y, z, hovertext, marker })),
      axes: ["xaxis", "yaxis", "zaxis"].map((axis) => plot._fullLayout.scene[axis].title.text),
      title: [document.title, plot._fullLayout.title.text],
      note: plot.layout.annotations[0].text,
      labels: [...plot.querySelectorAll(".annotation-text")].map((e) => e.textContent),
      list: [byId("list-title"), ...byId("list").rows].map((row) => row.textContent),
      layer: byId("layer-name").textContent,
    };
  };
  const press = (name) => plot.dispatchEvent(new PointerEvent(name, { clientX: 300, clientY: 300, bubbles: true }));
  const choose = () => byId("text").querySelectorAll("button")[4].click();
  const move = (layer) => { byId("layer").value = layer; byId("layer").dispatchEvent(new Event("input")); };
  await look("start");
  seen.buttons = [...document.querySelectorAll(".modebar-btn")].map((button) => button.dataset.title);
  move(0); await look("positions");
  move(1); choose(); await look("chosen");
  choose(); await look("again");
  plot.emit("plotly_hover", { points: [{ curveNumber: 0, pointNumber: 3 }] });
  press("pointerdown"); press("pointerup"); await look("clicked");
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The data of a page, and what a browser displays."""
    tmp_path = tmp_path_factory.mktemp("browser")
    tokens = ["<bos>", "</script>", "<b>x</b>", "&lt;", "\u2423%{x}", "\u21b5"]
    text = page(page_content(random_evolution(n_layers=2, L=6), tokens, "<i>run</i>"))
    return embedded(text), read_page(text, _READER, tmp_path)


@needs_browser
@pytest.mark.slow
def test_a_browser_draws_the_last_layer_by_mass(seen):
    content, shown = seen
    assert shown["errors"] == []
    assert not [title for title in shown["buttons"] if "Share" in title or "Cloud" in title], "texts stay here"
    start = shown["start"]
    tokens = start["data"][0]
    assert start["title"] == ["NGT Coordinate Space - 3D PCA"] * 2
    assert [tokens[axis] for axis in "xyz"] == content["points"][-1]
    mass = np.array(content["mass"])
    np.testing.assert_allclose(tokens["marker"]["color"], mass)
    np.testing.assert_allclose(tokens["marker"]["size"], 4 + 20 * (mass - mass.min()) / (mass.max() - mass.min()))
    assert tokens["marker"]["colorscale"] == "Viridis"
    assert tokens["marker"]["colorbar"]["title"]["text"] == "Mass"
    assert tokens["marker"]["line"] == {"color": "white", "width": 0.5}
    percentages = [f"{100 * fraction:.1f} %" for fraction in content["variance"][-1]]
    assert start["axes"] == [f"PC{k} ({text})" for k, text in enumerate(percentages, start=1)]
    assert all(text in start["note"] for text in [*percentages, f"total {100 * sum(content['variance'][-1]):.1f} %"])


@needs_browser
def test_a_browser_shows_tokens_unchanged(seen):
    content, shown = seen
    x, y, z = (axis[1] for axis in content["points"][-1])
    assert shown["start"]["data"][0]["hovertext"][1].split("<br>") == [
        "<b>&lt;/script&gt;</b>",
        "position 1 of 5",
        f"PC1 {x:.3f}",
        f"PC2 {y:.3f}",
        f"PC3 {z:.3f}",
        f"Mass {content['mass'][1]:.4f}",
    ]
    assert shown["start"]["data"][0]["hovertext"][3].startswith("<b>&amp;lt;</b>")
    assert set(shown["chosen"]["labels"]) >= set(content["tokens"][:5])


@needs_browser
def test_the_slider_moves_the_tokens(seen):
    content, shown = seen
    for name, layer in (("positions", 0), ("chosen", 1), ("start", 2)):
        assert [shown[name]["data"][0][axis] for axis in "xyz"] == content["points"][layer]
    assert [shown[name]["layer"][0] for name in ("positions", "chosen", "start")] == ["0", "1", "2"]
    assert f"{100 * sum(content['variance'][0]):.1f} %" in shown["positions"]["note"]


@needs_browser
def test_a_chosen_token_shows_its_attention_until_it_is_chosen_again(seen):
    content, shown = seen
    weights = decoded(content)[0, 4]
    chosen = shown["chosen"]["data"]
    np.testing.assert_allclose(chosen[0]["marker"]["color"], weights, atol=1e-9)
    assert chosen[0]["marker"]["symbol"] == ["circle"] * 4 + ["diamond", "circle-open"]
    assert chosen[0]["hovertext"][0].endswith(f"Attention {100 * weights[0]:.1f} %")
    strongest = int(np.argmax(weights))
    assert shown["chosen"]["list"][:2] == [
        "What \u201c\u2423%{x}\u201d (position 4) attends to",
        f"{content['tokens'][strongest]}{strongest}{100 * weights[strongest]:.1f} %",
    ]
    ends = [x for x in chosen[1]["x"] if x is not None]
    assert set(ends) == {content["points"][1][0][i] for i in range(5)}
    assert shown["again"]["data"][0]["marker"]["color"] == content["mass"]
    assert shown["again"]["data"][1]["x"] == []
    assert shown["clicked"]["list"][0] == "What \u201c&lt;\u201d (position 3) attends to"
