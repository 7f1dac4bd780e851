"""Reasons for which a contender has no verdict, whatever its losses."""

import math
from collections.abc import Collection

from psann_jax.config import Config
from psann_jax.config.sudoku import PuzzlesConfig
from psann_jax.experiments.budgets import EQUAL_TOKENS
from psann_jax.experiments.outcome import Outcome
from psann_jax.experiments.statistics import MIN_SEEDS
from psann_jax.experiments.text_noise import same_windows


def obstacle(group: Collection[Outcome], others: Collection[Outcome]) -> str:
    """Returns why there can be no verdict; "" if there can, and also with too few seeds for one.

    Args:
      group: the runs of a contender, with one setting under one budget, that are trained or have failed.
      others: those of the reference.
    """
    runs = [*group, *others]
    if min(len(group), len(others)) < MIN_SEEDS:
        return ""
    if any(run.failed for run in runs):
        return "a run failed"
    if not same_validation(runs):
        return "other validation text or tokens"
    if len({getattr(run.case.config.model, "iterations", 1) for run in runs}) > 1:
        return "losses are means over other iterations"
    known = max(runs, key=lambda run: run.summary is not None)  # one whose tokens are known, if any
    is_equal = all(have_equal_tokens(run, known) for run in runs)
    return "" if is_equal else "unequal training tokens"


def same_validation(runs: Collection[Outcome]) -> bool:
    """Returns whether runs were evaluated on the same windows, as far as that is known, transformed in the same way."""
    transformations = {_transformation(run.case.config) for run in runs}
    return len(transformations) <= 1 and same_windows([run.windows for run in runs])


def _transformation(config: Config) -> tuple[bool, int | None] | None:
    """Returns the settings that transform and order validation puzzles, but are not in the hash of their data."""
    data = config.data
    if not isinstance(data, PuzzlesConfig):
        return None
    return data.augment, data.seed if data.valid_files else None


def have_equal_tokens(run: Outcome, other: Outcome) -> bool:
    """Returns whether two runs have equal training tokens, unless their budget makes something else equal."""
    if run.case.budget not in EQUAL_TOKENS:
        return True
    if run.summary is None or other.summary is None:
        asked = [o.case.config.train.steps * o.case.config.train.batch_tokens for o in (run, other)]
        return asked[0] == asked[1]
    # Of padded rows, as many as the settings ask for may have other numbers of tokens.
    return math.isclose(run.summary["tokens"], other.summary["tokens"], rel_tol=1e-3)
