"""Shares of solved puzzles, by bucket and in total, with two standard errors."""

import math
from collections.abc import Mapping

import numpy as np

from psann_jax.config.sudoku import BUCKETS, NATURAL_SHARES


def solved_shares(counts: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """What the numbers of solved puzzles come to.

    Args:
      counts: for names in `BUCKETS`, how many puzzles are solved, and of how many.

    Returns:
      The share of solved puzzles: solved (of all), solved_balanced (mean over the buckets), solved_natural (mean
      weighted with `NATURAL_SHARES`, where no bucket is missing) and solved_<bucket>; each with two standard errors,
      solved..._2se. Empty where there are no puzzles.
    """
    counts = {name: counts[name] for name in BUCKETS if name in counts and counts[name][1]}
    if not counts:
        return {}
    shares = {name: solved / n for name, (solved, n) in counts.items()}
    variances = {name: share * (1 - share) / counts[name][1] for name, share in shares.items()}
    solved, puzzles = (sum(column) for column in zip(*counts.values(), strict=True))
    pooled = solved / puzzles
    totals = {"": (pooled, pooled * (1 - pooled) / puzzles)}
    weightings = {"_balanced": dict.fromkeys(counts, 1 / len(counts))}
    if len(counts) == len(BUCKETS):
        weightings["_natural"] = dict(zip(BUCKETS, NATURAL_SHARES, strict=True))
    for name, weights in weightings.items():
        totals[name] = (
            sum(weights[b] * shares[b] for b in counts),
            sum(weights[b] ** 2 * variances[b] for b in counts),
        )
    totals |= {f"_{name}": (shares[name], variances[name]) for name in counts}
    results = {}
    for name, (share, variance) in totals.items():
        results[f"solved{name}"] = share
        results[f"solved{name}_2se"] = 2 * math.sqrt(variance)
    return results


def shares_at(solved_N: np.ndarray, buckets_N: np.ndarray) -> dict[str, float]:
    """`solved_shares` of puzzles that are solved or not, in buckets given as indices into `BUCKETS` (-1: none)."""
    counts = {
        name: (float(solved_N[buckets_N == i].sum()), float((buckets_N == i).sum())) for i, name in enumerate(BUCKETS)
    }
    return solved_shares(counts)
