"""Sudoku as a task of the training loop."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

from psann_jax.config import ConfigError
from psann_jax.config.families import family
from psann_jax.config.io import default_config, parse, to_dict
from psann_jax.tasks.sudoku import SudokuTask
from psann_jax.train.evaluation import WindowLosses
from psann_jax.train.loop import train


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def tiny(cache, **train):
    config = default_config("sudoku")
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=16, iterations=2)
    config.data.update(counts=(150, 30, 0, 0, 0), extra_clues=30, curriculum="mixed", valid_fraction=0.1)
    config.data.cache_dir = cache
    config.train.update(
        {"steps": 12, "batch_tokens": 81 * 16, "lr": 1e-2, "warmup_steps": 2, "precision": "fp32", "log_every": 1}
    )
    config.train.update(train)
    config.checkpoint.every = 5
    return parse(config)


def test_the_settings_are_those_of_puzzles(cache):
    config = tiny(cache)
    assert config.batch_size == 16
    assert parse(json.loads(json.dumps(to_dict(config)))) == config
    assert family("sudoku").get("task") is SudokuTask
    assert family("transformer").get("task") is not SudokuTask
    mapping = to_dict(config)
    mapping["data"]["sources"] = ("builtin:python",)
    with pytest.raises(ConfigError, match=r"data\.sources: unknown key"):
        parse(mapping)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_of_other_bases_is_refused(cache, remat):
    with pytest.raises(
        ConfigError, match=rf"train\.remat: is '{remat}', must be one of none, block, iteration, nested"
    ):
        SudokuTask.load(tiny(cache, remat=remat), progress=False)


def test_losses_by_puzzle_can_be_compared_with_those_of_earlier_versions(cache, tmp_path):
    """How a config transforms the puzzles is not in the hash; `psann_jax.experiments.obstacles` looks at it."""
    augmented = tiny(cache, steps=1, warmup_steps=0)
    plain = dataclasses.replace(augmented, data=dataclasses.replace(augmented.data, augment=False))
    tasks = [SudokuTask.load(config, progress=False) for config in (augmented, plain)]
    assert (tasks[0].data.valid.puzzles_Nx81 != tasks[1].data.valid.puzzles_Nx81).any()
    train(plain, lambda: tasks[1], tmp_path)
    assert WindowLosses.read(tmp_path).data == tasks[0].fingerprint() == tasks[1].fingerprint()


def test_what_has_no_effect_is_refused(cache):
    with pytest.raises(ConfigError, match=r"train\.label_smoothing: has no effect with base sudoku"):
        SudokuTask.load(tiny(cache, label_smoothing=0.1), progress=False)


def test_loss_and_statistics(cache):
    task = SudokuTask.load(tiny(cache), progress=False)
    params = task.network.init(jax.random.key(0))
    batch = next(task.train_batches(0))
    assert {n: (a.shape, a.dtype) for n, a in batch.items()} == {
        n: (a.shape, a.dtype) for n, a in task.batch_shapes(16).items()
    }
    evaluate = jax.jit(lambda batch: task.loss(params, batch, None)[1])
    loss, stats = jax.jit(task.loss)(params, batch, jax.random.key(1))
    assert set(stats) == {"nll", "correct", "weight"}
    assert stats["weight"] == task.weight(batch) == (batch["puzzles"] == 0).sum()
    assert loss == stats["nll"]
    assert 1 < loss / stats["weight"] < 10
    # The sums of two halves are those of the whole.
    whole = evaluate(batch)
    halves = [evaluate({name: x[rows] for name, x in batch.items()}) for rows in (slice(8), slice(8, 16))]
    for name, value in whole.items():
        first, second = (half[name] for half in halves)
        joined = np.concatenate((first, second)) if name.endswith("_B") else first + second
        np.testing.assert_allclose(value, joined, rtol=1e-5)
    np.testing.assert_allclose(
        (whole["nll_B"].sum(), whole["weight_B"].sum()), (whole["nll"], whole["weight"]), rtol=1e-5
    )


def test_results():
    sums = {"nll": 30.0, "weight": 20.0, "correct": 15.0}
    sums |= {f"puzzles_{n}": p for n, p in zip(("0", "1-2", "3-10", "11-50", "51+"), (80, 20, 0, 0, 0), strict=True)}
    sums |= {f"solved_{n}": p for n, p in zip(("0", "1-2", "3-10", "11-50", "51+"), (60, 0, 0, 0, 0), strict=True)}
    results = SudokuTask.summarise(None, sums)
    wanted = {"loss": 1.5, "accuracy": 0.75, "tokens": 20, "solved": 0.6, "solved_balanced": 0.75, "solved_0": 0.75}
    assert {name: results[name] for name in wanted} == wanted
    assert results["solved_1-2"] == results["solved_1-2_low"] == 0
    assert 0.1 < results["solved_1-2_high"] < 0.2
    assert "solved_51+" not in results
    assert results["solved_low"] < 0.6 < results["solved_high"]


def test_rare_ratings_are_named_before_training_and_a_part_is_evaluated_in_proportion(cache):
    config = tiny(cache)
    task = SudokuTask.load(config, progress=False)
    counts = np.bincount(task.data.valid.buckets_N, minlength=2)
    (warning,) = task.warnings()
    assert warning.startswith("validation: ratings with fewer than 50 puzzles are left out of the balanced mean: 0 (")
    half = len(task.data.valid) // 2
    task.config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, max_tokens=81 * half))
    buckets = np.concatenate([batch["buckets"] for batch in task.valid_batches(4)])
    found = np.bincount(buckets[buckets >= 0], minlength=2)
    assert found.sum() == half
    assert abs(found[1] - counts[1] / 2) <= 1
    assert counts[1] > 1


def test_training_lowers_the_loss_and_resumes_exactly(cache, tmp_path):
    """The learning rate is constant, so that a run that is made longer has taken the same steps."""
    summaries = {}
    for name, lengths in {"straight": (8,), "resumed": (5, 8)}.items():
        for steps in lengths:
            options = {"remat": "nested", "sam_rho": 0.05, "ema_decay": 0.9, "schedule": "constant"}
            config = tiny(cache, steps=steps, **options)
            summaries[name] = train(config, partial(SudokuTask.load, config, progress=False), tmp_path / name)
    for loss in ("train_loss", "val_loss", "val_ema_loss"):
        assert summaries["resumed"][loss] == summaries["straight"][loss]
    rows = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [row for row in rows if row["kind"] == "eval"]
    assert last["loss"] < first["loss"] - 0.02
    assert {"solved", "solved_0", "solved_0_low", "solved_0_high"} <= set(last)
