"""Reasons for which a contender has no verdict, whatever its losses."""

from collections.abc import Collection

from psann_jax.config import Config
from psann_jax.config.sudoku import PuzzlesConfig
from psann_jax.experiments.budgets import EQUAL_TOKENS
from psann_jax.experiments.cases import Case
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
    return "" if all(has_tokens_of(run.case, runs[0].case) for run in runs) else "unequal training tokens"


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


def has_tokens_of(case: Case, reference: Case) -> bool:
    """Returns whether a run has the training tokens of another, unless its budget makes something else equal."""
    tokens = [c.config.train.steps * c.config.train.batch_tokens for c in (case, reference)]
    return tokens[0] == tokens[1] or case.budget not in EQUAL_TOKENS
