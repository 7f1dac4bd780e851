"""The Sudoku model from stock PyTorch layers, and random puzzles."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.bench import sudoku_peer, throughput
from psann_jax.bench.ours import Ours
from psann_jax.bench.random_task import random_task
from psann_jax.config import Config, PuzzlesConfig, SudokuConfig, TrainConfig
from psann_jax.data.sudoku.random_puzzles import RandomPuzzles
from psann_jax.models.network import build
from psann_jax.tasks.lm import LanguageModel
from psann_jax.tasks.sudoku import SudokuTask
from psann_jax.utils.errors import UserError
from tests.support.sudoku_names import entries, params_of

TINY = Config(
    model=SudokuConfig(d_model=16, n_layers=2, n_heads=2, d_mlp=24, iterations=3, dropout=0.0),
    data=PuzzlesConfig(),
    train=TrainConfig(batch_tokens=81 * 4, precision="fp32"),
)
TOP = {"embed": "initial_encoder", "feedback": "pred_proj", "head": "output_head", "column": "col_embed"}
TOP |= {"row": "row_embed", "box": "box_embed", "blocks": "transformer"}


def test_it_is_the_same_function(x64):
    torch = pytest.importorskip("torch")
    theirs = sudoku_peer.build_model(TINY.model).double()
    arrays = {}
    for name, value in theirs.named_parameters():
        value.data = torch.randn_like(value) * 0.3
        top, rest = name.split(".", 1)
        arrays[f"{TOP[top]}.{rest}"] = value.detach().numpy()
    network = build(TINY.model, dtype=jnp.float64)
    model = network.merge(jax.tree.map(jnp.asarray, params_of(network, entries(arrays, ""))))
    puzzles = next(RandomPuzzles(TINY).train_batches(seed=1, batch_size=3))["puzzles"]
    want = theirs.eval()(torch.from_numpy(puzzles.astype(np.int64))).detach().numpy()
    np.testing.assert_allclose(model.run(jnp.asarray(puzzles), lambda logits: logits), want, rtol=1e-9, atol=1e-9)


def test_it_has_the_originals_parameters_and_trains():
    pytest.importorskip("torch")
    assert sum(p.numel() for p in sudoku_peer.build_model(SudokuConfig()).parameters()) == 800_393
    contender = sudoku_peer.make(TINY)
    assert contender.facts["n_params"] == build(TINY.model).n_params
    before = [p.detach().clone() for p in contender._model.parameters()]
    assert all(seconds > 0 for seconds in contender.run(2))
    assert all((p != b).any() for p, b in zip(contender._model.parameters(), before, strict=True))
    assert contender.peak_memory_mb() > 50


@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("block", 2), ("iteration", 2), ("nested", 3)])
def test_it_recomputes_what_the_config_says(remat, runs):
    torch = pytest.importorskip("torch")
    batch = next(RandomPuzzles(TINY).train_batches(seed=1, batch_size=3))
    puzzles = torch.from_numpy(batch["puzzles"].astype(np.int64))

    def gradients(model):
        torch.manual_seed(1)
        for value in model.parameters():
            value.data = torch.randn_like(value) * 0.3
        model(puzzles).square().mean().backward()
        return [p.grad for p in model.parameters()]

    model, calls = sudoku_peer.build_model(TINY.model, remat).double(), []
    model.blocks.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    want = gradients(sudoku_peer.build_model(TINY.model).double())
    for found, expected in zip(gradients(model), want, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert len(calls) == runs * TINY.model.iterations


def test_differences_are_named():
    half = dataclasses.replace(TINY.train, precision="fp16", weight_decay_on="all")
    config = dataclasses.replace(TINY, train=half)
    assert len(sudoku_peer.differences(TINY, on_gpu=False)) == 1
    assert sudoku_peer.differences(config, on_gpu=True) == []
    assert "float32 on CPU" in sudoku_peer.differences(config, on_gpu=False)[0]


def test_filling_grids_changes_nothing():
    pytest.importorskip("torch")
    theirs, ours = sudoku_peer.make(TINY), Ours(TINY)
    before = [p.detach().clone() for p in theirs._model.parameters()]
    state = jax.device_get(ours._state["params"])
    assert all(seconds > 0 for contender in (theirs, ours) for seconds in contender.run(2, False))
    assert all((p == b).all() for p, b in zip(theirs._model.parameters(), before, strict=True))
    assert theirs._model.training
    jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(ours._state["params"]))
    puzzles = next(ours._batches)["puzzles"]
    grids = np.asarray(ours._infer(ours._state["params"], {"puzzles": puzzles}))
    assert (grids[puzzles > 0] == puzzles[puzzles > 0]).all()
    assert ((grids >= 1) & (grids <= 9)).all()


@pytest.mark.slow
def test_both_speeds_are_reported():
    result = throughput.measure(TINY, n_steps=2)
    assert result["filled_puzzles_per_s"] > 0
    rate = f"inference {result['filled_puzzles_per_s']:,.1f} puzzles/s"
    assert rate in throughput.report(result)


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ("model", {"positional_encoding": "rope2d"}, r"model\.positional_encoding"),
        ("model", {"mlp_activation": "sine"}, r"model\.mlp_activation"),
        ("train", {"sam_rho": 0.05}, r"train\.sam_rho"),
        ("train", {"lora_rank": 2}, r"train\.lora_rank: must be 0 with --peer=torch"),
        ("train", {"freeze": ("bias",)}, r"train\.freeze: must be \(\) with --peer=torch"),
        ("train", {"ema_decay": 0.9}, r"train\.ema_decay"),
        ("train", {"optimizer": "muon"}, r"train\.optimizer"),
        ("train", {"grad_accum": 2}, r"train\.grad_accum"),
    ],
)
def test_unsupported_settings_are_rejected(section, options, message, monkeypatch):
    monkeypatch.setattr("psann_jax.utils.extras.find_spec", lambda name: True)
    changed = dataclasses.replace(getattr(TINY, section), **options)
    with pytest.raises(UserError, match=message):
        sudoku_peer.check(dataclasses.replace(TINY, **{section: changed}))


def test_it_is_for_sudoku_and_needs_torch(monkeypatch):
    monkeypatch.setattr("psann_jax.utils.extras.find_spec", lambda name: True)
    with pytest.raises(UserError, match=r"model\.base: is waveresnet; --peer=torch is for base sudoku"):
        sudoku_peer.check(Config())
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"--peer=torch: needs torch; pip install 'psann_jax\[torch\]'"):
        sudoku_peer.check(TINY)


def test_random_puzzles_look_like_real_ones():
    task = random_task(TINY)
    assert isinstance(task, SudokuTask)
    batch = next(task.train_batches(0))
    shapes = task.batch_shapes(4)
    assert {n: (a.shape, a.dtype) for n, a in batch.items()} == {n: (a.shape, a.dtype) for n, a in shapes.items()}
    holes = batch["puzzles"] == 0
    assert 0.5 < holes.mean() < 0.8
    assert ((batch["puzzles"] == batch["solutions"]) | holes).all()
    assert set(np.unique(batch["solutions"])) == set(range(1, 10))
    loss, _ = jax.jit(task.loss)(task.network.init(jax.random.key(0)), batch, None)
    assert np.isfinite(loss)


def test_other_bases_get_random_text():
    model = dataclasses.replace(Config().model, vocab_size=40, d_model=16, n_layers=1, n_heads=2, d_mlp=16)
    assert isinstance(random_task(dataclasses.replace(Config(), model=model)), LanguageModel)
