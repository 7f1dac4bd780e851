"""Fractions of solved puzzles, by bucket and in total, each with two standard errors."""

import math
from collections.abc import Mapping

import numpy as np

from psann_jax.config.sudoku import BUCKETS, NATURAL_FRACTIONS


def solved_fractions(counts: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Computes the fractions of solved puzzles.

    Args:
      counts: bucket in `BUCKETS` -> (solved puzzles, all puzzles).

    Returns:
      solved (of all puzzles), solved_balanced (mean over the buckets), solved_natural (mean weighted by
      `NATURAL_FRACTIONS`, if no bucket is empty) and solved_<bucket>; for each also two standard errors, with the
      suffix _2se. Empty if there are no puzzles.
    """
    counts = {name: counts[name] for name in BUCKETS if name in counts and counts[name][1]}
    if not counts:
        return {}
    fractions = {name: solved / n for name, (solved, n) in counts.items()}
    variances = {name: p * (1 - p) / counts[name][1] for name, p in fractions.items()}
    solved, puzzles = (sum(column) for column in zip(*counts.values(), strict=True))
    pooled = solved / puzzles
    totals = {"": (pooled, pooled * (1 - pooled) / puzzles)}
    weightings = {"_balanced": dict.fromkeys(counts, 1 / len(counts))}
    if len(counts) == len(BUCKETS):
        weightings["_natural"] = dict(zip(BUCKETS, NATURAL_FRACTIONS, strict=True))
    for name, weights in weightings.items():
        totals[name] = (
            sum(weights[b] * fractions[b] for b in counts),
            sum(weights[b] ** 2 * variances[b] for b in counts),
        )
    totals |= {f"_{name}": (fractions[name], variances[name]) for name in counts}
    results = {}
    for name, (p, variance) in totals.items():
        results[f"solved{name}"] = p
        results[f"solved{name}_2se"] = 2 * math.sqrt(variance)
    return results


def fractions_of(solved_N: np.ndarray, buckets_N: np.ndarray) -> dict[str, float]:
    """Computes `solved_fractions` from bool results and the bucket of each puzzle, an index in `BUCKETS` or -1."""
    counts = {
        name: (float(solved_N[buckets_N == i].sum()), float((buckets_N == i).sum())) for i, name in enumerate(BUCKETS)
    }
    return solved_fractions(counts)
