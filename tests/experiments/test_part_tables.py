"""Losses by position and source in the report of a sweep."""

import numpy as np
import pytest

from psann_jax.experiments.cases import all_cases
from psann_jax.experiments.part_tables import loss_parts
from psann_jax.experiments.report import write_report
from psann_jax.train.evaluation import WindowLosses
from psann_jax.train.loss_parts import LossParts
from tests.support.sweeps import make_outcome, small_sweep

NAMES = ("1-16", "17-64")
WEIGHTS = np.array([[4.0, 0], [4, 12], [4, 12], [4, 12]])


def outcome_of(case, by_part, **parts):
    """A run whose losses are by_part in every window."""
    kinds = {"position": LossParts(NAMES, WEIGHTS * by_part, WEIGHTS), **parts}
    return make_outcome(case, 3.0, windows=WindowLosses(np.zeros(4), WEIGHTS.sum(1), 40, "", kinds))


def test_losses_and_differences_by_position(tmp_path):
    cases = all_cases(small_sweep(seeds=(1, 2)))
    extra = {"transformer": (3, 2.5), "waveresnet": (3.1, 2.0), "ngt": (3, 2.5)}
    outcomes = [
        outcome_of(case, np.array(extra[case.contender]) + 0.1 * case.seed * (case.contender == "waveresnet"))
        for case in cases
    ]
    ((title, _, (head, *rows)),) = loss_parts(outcomes, "transformer")
    assert title == "Loss by position"
    assert head == ["contender", "seeds", *NAMES]
    found = {row[0]: row[1:] for row in rows}
    assert found["transformer"] == ["2", "3.0000 ± 0.0000", "2.5000 ± 0.0000"]
    # Seeds differ by 0.1 in the mean of two: a standard error of 0.05.
    assert found["waveresnet − transformer"] == ["2", "+0.2500 ± 0.0500", "-0.3500 ± 0.0500"]
    write_report("parts", outcomes, 6, "transformer", tmp_path)
    assert "| waveresnet − transformer | 2 | +0.2500 ± 0.0500 |" in (tmp_path / "report.md").read_text()


def test_sources_and_runs_without_parts():
    cases = all_cases(small_sweep(seeds=(1,)))
    sources = LossParts(("a.txt", "b|c.txt"), WEIGHTS * 2, WEIGHTS)
    outcomes = [outcome_of(cases[0], 1.0, source=sources), make_outcome(cases[1], 3.0)]
    position, source = loss_parts(outcomes, "transformer")
    assert (position[0], source[0]) == ("Loss by position", "Loss by source")
    assert [row[0] for row in source[2]] == ["contender", "transformer"]
    one = LossParts(("a.txt",), WEIGHTS[:, :1], WEIGHTS[:, :1])
    assert len(loss_parts([outcome_of(cases[0], 1.0, source=one)], "transformer")) == 1
    assert loss_parts([make_outcome(cases[0], 3.0)], "transformer") == []


def test_other_windows_are_not_subtracted():
    cases = all_cases(small_sweep(seeds=(1,)))
    other = LossParts(NAMES, WEIGHTS, WEIGHTS + 1)
    outcomes = [outcome_of(cases[0], 1.0), outcome_of(cases[1], 1.0, position=other)]
    (_, _, rows) = loss_parts(outcomes, "transformer")[0]
    assert [row[0] for row in rows] == ["contender", "transformer", "waveresnet"]


def test_the_noise_of_the_text_is_that_of_the_windows():
    cases = all_cases(small_sweep(seeds=(1, 2)), only=["transformer", "ngt"])
    weights, level = np.full((200, 2), 10.0), np.random.default_rng(0).normal(3, 0.2, (200, 2))

    def run(case):
        parts = LossParts(NAMES, weights * (level if case.contender == "ngt" else 3.0), weights)
        return make_outcome(
            case, 3.0, windows=WindowLosses(np.zeros(200), np.full(200, 20.0), 40, "", {"position": parts})
        )

    (_, _, rows) = loss_parts(list(map(run, cases)), "transformer")[0]
    (difference,) = [row for row in rows if row[0] == "ngt − transformer"]
    for cell in difference[2:]:
        assert float(cell.split(" ± ")[1]) == pytest.approx(0.2 / 200**0.5, rel=0.3)
