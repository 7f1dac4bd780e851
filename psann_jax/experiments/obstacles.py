"""Reasons for which a contender has no verdict, whatever its losses."""

from collections.abc import Collection

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
    if not same_windows([run.windows for run in runs]):
        return "other validation text or tokens"
    return "" if all(has_tokens_of(run.case, runs[0].case) for run in runs) else "unequal training tokens"


def has_tokens_of(case: Case, reference: Case) -> bool:
    """Returns whether a run has the training tokens of another, unless its budget makes something else equal."""
    tokens = [c.config.train.steps * c.config.train.batch_tokens for c in (case, reference)]
    return tokens[0] == tokens[1] or case.budget not in EQUAL_TOKENS
