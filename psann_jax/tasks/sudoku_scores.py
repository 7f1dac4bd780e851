"""Fractions of solved puzzles, by rating and in total, each with a 95 % interval."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from psann_jax.config.sudoku import BUCKETS, NATURAL_FRACTIONS

LEAST = 50  # puzzles of a rating below which it is left out of the balanced mean
BOUNDS = ("_low", "_high")  # suffixes of the names of an interval's ends
_Z = 1.959964  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Fraction:
    """An estimated fraction and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def solved_fractions(counts: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Computes the fractions of solved puzzles.

    Args:
      counts: bucket in `BUCKETS` -> (solved puzzles, all puzzles).

    Returns:
      solved (of all puzzles), solved_balanced (mean over the buckets of at least `LEAST` puzzles, if there is one),
      solved_natural (mean weighted by `NATURAL_FRACTIONS`, if no bucket is empty) and solved_<bucket>; for each also
      the ends of its 95 % interval, with the suffixes of `BOUNDS`. Empty if there are no puzzles.
    """
    counts = {name: counts[name] for name in BUCKETS if name in counts and counts[name][1]}
    if not counts:
        return {}
    by_bucket = {name: wilson(*count) for name, count in counts.items()}
    solved, puzzles = (sum(column) for column in zip(*counts.values(), strict=True))
    found = {"solved": wilson(solved, puzzles)}
    large = [name for name, (_, n) in counts.items() if n >= LEAST]
    if large:
        found["solved_balanced"] = _weighted([(1 / len(large), by_bucket[name]) for name in large])
    if len(counts) == len(BUCKETS):
        found["solved_natural"] = _weighted(list(zip(NATURAL_FRACTIONS, by_bucket.values(), strict=True)))
    found |= {f"solved_{name}": fraction for name, fraction in by_bucket.items()}
    results: dict[str, float] = {}
    for name, fraction in found.items():
        results |= {name: fraction.value, f"{name}_low": fraction.low, f"{name}_high": fraction.high}
    return results


def fractions_of(solved_N: np.ndarray, buckets_N: np.ndarray) -> dict[str, float]:
    """Computes `solved_fractions` from bool results and the bucket of each puzzle, an index in `BUCKETS` or -1."""
    counts = {
        name: (float(solved_N[buckets_N == i].sum()), float((buckets_N == i).sum())) for i, name in enumerate(BUCKETS)
    }
    return solved_fractions(counts)


def left_out(buckets_N: np.ndarray) -> str:
    """Says which ratings are too rare among some puzzles for the balanced mean; "" if none is.

    Args:
      buckets_N: the bucket of each puzzle, an index in `BUCKETS` or -1.
    """
    counts = np.bincount(buckets_N + 1, minlength=1 + len(BUCKETS))[1:].tolist()
    rare = [f"{name} ({n:,})" for name, n in zip(BUCKETS, counts, strict=True) if 0 < n < LEAST]
    return (
        f"ratings with fewer than {LEAST} puzzles are left out of the balanced mean: {', '.join(rare)}" if rare else ""
    )


def wilson(solved: float, puzzles: float) -> Fraction:
    """Estimates a fraction from counts. Unlike two standard errors, its interval is not empty at 0 and 1.

    Source: Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference".

    Args:
      solved: number of successes.
      puzzles: number of trials, at least 1.
    """
    p, ratio = solved / puzzles, _Z**2 / puzzles
    centre = (p + ratio / 2) / (1 + ratio)
    half = math.sqrt(ratio * p * (1 - p) + ratio**2 / 4) / (1 + ratio)
    # The bounds by p are exact; only rounding could break them.
    return Fraction(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def _weighted(parts: list[tuple[float, Fraction]]) -> Fraction:
    """Returns a weighted mean of independent fractions, with an interval from the intervals of its terms.

    Source: Zou, Huang and Zhang (2009), "A note on confidence interval estimation for a linear function of binomial
    proportions" (the method of variance estimates recovery).
    """
    value = sum(w * f.value for w, f in parts)
    below = math.sqrt(sum((w * (f.value - f.low)) ** 2 for w, f in parts))
    above = math.sqrt(sum((w * (f.high - f.value)) ** 2 for w, f in parts))
    return Fraction(value, max(0.0, value - below), min(1.0, value + above))
