"""The trials of the tuning stage: their data, and the choice that they make."""

import dataclasses
import math

import numpy as np
import pytest

from psann_jax.config.io import default_config
from psann_jax.experiments.cases import Case
from psann_jax.experiments.outcome import DIVERGED
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.experiments.trials import Stage, choose, trial_cases
from psann_jax.experiments.tuning import HIGH, LOW, Tuning
from psann_jax.experiments.tuning_tables import tuning_sections
from psann_jax.train.evaluation import WindowLosses
from tests.experiments.test_tuning import tuned_sweep
from tests.support.sweeps import make_outcome

RATES = (1e-3, 2e-3, 4e-3)
TUNING = Tuning({"train.lr": RATES}, seeds=(8, 9), valid_fraction=0.125)


def trials(tuning=TUNING, **options):
    """The trials of two contenders of the small sweep."""
    return trial_cases(tuned_sweep(tuning), {name: tuning.grid(name) for name in ("transformer", "ngt")}, **options)


def outcomes(losses, seeds=(0,), windows=None):
    """Outcomes of one contender: a tuple of losses, one per seed, for every rate."""
    (config, *_) = (case.config for case in trials())
    return [
        dataclasses.replace(
            make_outcome(Case("ngt", (("train.lr", rate),), seed, "tokens", config), loss),
            windows=windows and windows[rate],
        )
        for rate, row in losses.items()
        for seed, loss in zip(seeds, row, strict=True)
    ]


def test_trials_use_the_training_data_only():
    cases = trials(overrides=["train.steps=7"])
    assert [case.name for case in cases[:4]] == [
        *(f"transformer_lr{lr}_seed8" for lr in RATES),
        "ngt_lr0.001_seed8",
    ]
    assert len(cases) == 2 * 3 * 2
    for case in cases:
        assert (case.config.data.valid_sources, case.config.data.valid_fraction) == ((), 0.125)
        assert (case.config.seed, case.config.train.steps) == (case.seed, 7)
        assert case.config.train.lr == dict(case.settings)["train.lr"]


def test_the_report_gives_every_length_of_the_trials():
    contenders = {"a": {"model.base": "ngt"}, "b": {"model.base": "ngt", "train.steps": 20, "train.batch_tokens": 128}}
    cases = trial_cases(tuned_sweep(TUNING, contenders=contenders), {name: TUNING.grid(name) for name in contenders})
    (explanation, _) = tuning_sections(Stage(TUNING, ("valid.txt",), cases, []))
    assert explanation.text.startswith(
        "6 trials of each contender, seeds 8, 9, 40 updates of 64 tokens or 20 updates of "
    )


def test_puzzles_are_held_out_too():
    common = default_config("sudoku")
    common.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=16, iterations=2)
    common.data.valid_files = ("test.csv",)
    tuning = Tuning({"train.lr": (1e-3, 2e-3)})
    sweep = sweep_config(common, {"relu": {"model.base": "sudoku"}}, tuning=tuning)
    for case in trial_cases(sweep, {"relu": tuning.grid("relu")}):
        assert (case.config.data.valid_files, case.config.data.valid_fraction) == ((), 0.04)


def test_the_lowest_mean_loss_is_chosen():
    found = outcomes({1e-3: (3.0, 3.4), 2e-3: (3.1, 3.2), 4e-3: (3.3, 3.3)}, seeds=(0, 1))
    choice = choose(found)["ngt"]
    assert choice.settings == (("train.lr", 2e-3),)
    assert choice.candidates[0].loss == pytest.approx(3.15)
    assert choice.edges == ()


@pytest.mark.parametrize(("best", "edge"), [(1e-3, LOW), (4e-3, HIGH)])
def test_a_choice_at_the_end_of_the_values_is_on_an_edge(best, edge):
    found = outcomes({rate: (3.0 if rate == best else 4.0,) for rate in RATES})
    assert choose(found)["ngt"].edges == (("train.lr", edge),)


def test_words_and_single_values_have_no_edge():
    (config, *_) = (case.config for case in trials())
    found = [
        make_outcome(Case("ngt", (("a", word), ("b", 1.0), ("c", flag)), 0, "tokens", config), 3.0 + i)
        for i, (word, flag) in enumerate([("x", True), ("y", False)])
    ]
    assert choose(found)["ngt"].edges == ()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_trial_is_infinitely_bad(loss):
    found = outcomes({1e-3: (loss, 1.0), 2e-3: (5.0, 5.0)}, seeds=(0, 1))
    choice = choose(found)["ngt"]
    assert choice.settings == (("train.lr", 2e-3),)
    assert [c.loss for c in choice.candidates] == [5.0, math.inf]


def test_a_stage_is_complete_if_trials_diverged_but_not_if_one_failed():
    found = outcomes({1e-3: (3.0,), 2e-3: (4.0,)})
    cases = [o.case for o in found]
    ended = dataclasses.replace(found[1], summary=None, error=f"{DIVERGED}10 updates in a row were not finite")
    stage = Stage(TUNING, ("valid.txt",), cases, [found[0], ended])
    assert (stage.complete, ended.failed) == (True, False)
    assert stage.choices()["ngt"].settings == (("train.lr", 1e-3),)
    out_of_memory = dataclasses.replace(ended, error="out of memory")
    stage = Stage(TUNING, ("valid.txt",), cases, [found[0], out_of_memory])
    assert (stage.complete, stage.choices()) == (False, {})
    assert not Stage(TUNING, ("valid.txt",), cases, found[:1]).complete


def windows(losses_W, step=40):
    """Losses by window, with ten targets in each."""
    weight_W = np.full(len(losses_W), 10.0)
    return WindowLosses(np.asarray(losses_W) * weight_W, weight_W, step, "data")


def test_losses_within_the_noise_of_the_text_are_tied():
    rng = np.random.default_rng(0)
    best = rng.normal(3.0, 0.3, 400)
    noisy, worse = best + rng.normal(0.0, 0.2, 400), best + 0.1 + rng.normal(0.0, 0.2, 400)
    by_rate = dict(zip(RATES, (best, noisy + 0.01 - (noisy - best).mean(), worse), strict=True))
    losses = {rate: (float(found.mean()),) for rate, found in by_rate.items()}
    choice = choose(outcomes(losses, windows={rate: windows(found) for rate, found in by_rate.items()}))["ngt"]
    assert [c.settings for c in choice.tied] == [(("train.lr", 2e-3),)]


def test_losses_within_the_noise_of_the_seeds_are_tied():
    """The 95 % interval of 0.1 and 0.2 (one degree of freedom) contains zero, that of 1.0 and 1.1 does not."""
    choice = choose(outcomes({1e-3: (3.0, 3.1), 2e-3: (3.1, 3.3), 4e-3: (4.0, 4.2)}, seeds=(0, 1)))["ngt"]
    assert [c.settings for c in choice.tied] == [(("train.lr", 2e-3),)]


def test_without_known_noise_only_equal_losses_are_tied():
    choice = choose(outcomes({1e-3: (3.0,), 2e-3: (3.0,), 4e-3: (3.0001,)}))["ngt"]
    assert choice.settings == (("train.lr", 1e-3),), "the first in the grid"
    assert [c.settings for c in choice.tied] == [(("train.lr", 2e-3),)]
