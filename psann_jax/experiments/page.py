"""The data of the interactive figures in a sweep's report.html, ready for JSON; report.js draws them."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from psann_jax.config.families import family
from psann_jax.experiments.comparisons import Comparison
from psann_jax.experiments.outcome import Outcome
from psann_jax.experiments.statistics import mean_interval
from psann_jax.experiments.tables import DIFFERENCE_COLUMNS, EQUAL, difference_row
from psann_jax.plots.style import line_style
from psann_jax.train.metrics import SAMPLES

_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
_SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross",
            "X": "x", "*": "star"}  # fmt: skip
# Costs in the data -> their names in `Outcome.metrics`.
_COSTS = {"tokens": "train_tokens", "flops": "train_flops", "seconds": "train_elapsed_s", "parameters": "param_count"}
_MOST_POINTS = 300  # of a curve
_DIGITS = 7


@dataclass(frozen=True)
class _Metric:
    """A result that the page can show.

    Attributes:
      key: its name in the data.
      title: its name for readers, without the unit.
      final: its name in `Outcome.metrics`.
      curve: kind and name of the rows of metrics.jsonl from which its curves come.
      is_loss: whether lower values are better.
      shown: from the mean and band of the values to those displayed.
    """

    key: str
    title: str
    final: str
    curve: tuple[str, str]
    is_loss: bool = True
    shown: Callable[[float], float] = float


def _exp(value: float) -> float:
    return math.exp(min(value, 700))


_METRICS = (
    _Metric("loss", "validation loss", "val_loss", ("eval", "loss")),
    # As in the tables: the exponential of the mean loss.
    _Metric("perplexity", "validation perplexity", "val_loss", ("eval", "loss"), shown=_exp),
    _Metric("accuracy", "validation accuracy", "val_accuracy", ("eval", "accuracy"), is_loss=False),
    _Metric("solved", "fraction of solved puzzles", "val_solved", ("eval", "solved"), is_loss=False),
    _Metric("train_loss", "training loss", "train_loss", ("train", "loss")),
)


def page_content(outcomes: Sequence[Outcome], comparisons: Sequence[Comparison], reference: str) -> dict[str, Any]:
    """Returns the data of the figures.

    Args:
      outcomes: the runs that are trained or have failed; at least one is trained. Curves and points are of these, and
        a contender of which a run diverged has no mean of the final values.
      comparisons: all of the report, from which its tables are, too.
      reference: the contender that the others are compared with.

    Returns:
      A dict with reference, columns (of the table of differences) and
      budgets: dicts of key and title;
      metrics: dicts of key, title and is_loss;
      contenders: dicts of name, is_reference, colour, dash and symbol, the last three in Plotly's terms;
      groups: the runs that differ only in their seed, see `_group`;
      differences: dicts of contender and reference (names), budget, mean, low, high, pairs (by seed), verdict and cells
        (of the table);
      samples: dicts of contender, budget, seed, step and texts, see `psann_jax.sample.prompts`; step is the number of
        updates of an evaluation with eval.prompts, None after the last one.
    """
    finished = [outcome for outcome in outcomes if outcome.summary is not None]
    n_diverged: Counter[object] = Counter(o.case.group for o in outcomes if o.summary is None and o.diverged)
    groups: dict[object, list[Outcome]] = {}
    for outcome in finished:
        groups.setdefault(outcome.case.group, []).append(outcome)
    shown = {(o.case.label, o.case.budget) for o in finished}
    contenders = {o.case.label: o.case.contender for o in finished}
    has = {metric.key: all(o.metrics().get(metric.final) is not None for o in finished) for metric in _METRICS}
    metrics = [metric for metric in _METRICS if has[metric.key]]
    unit = f"nats per {family(finished[0].case.config.model.base).get('task').TARGET}"
    return {
        "reference": reference,
        "columns": DIFFERENCE_COLUMNS,
        "budgets": [{"key": b, "title": EQUAL[b]} for b in dict.fromkeys(o.case.budget for o in finished)],
        "metrics": [{"key": m.key, "title": _title(m, unit), "is_loss": m.is_loss} for m in metrics],
        "contenders": [
            {"name": label, "is_reference": contender == reference, **_style(i)}
            for i, (label, contender) in enumerate(contenders.items())
        ],
        "groups": [_group(group, metrics, n_diverged[key]) for key, group in groups.items()],
        "differences": [
            _difference(c) for c in comparisons if not c.is_slope and {(label, c.budget) for label in c.labels} <= shown
        ],
        "samples": [entry for o in finished for entry in _samples(o)],
    }


def _title(metric: _Metric, unit: str) -> str:
    return f"{metric.title} ({unit})" if metric.title.endswith("loss") else metric.title


def _style(i: int) -> dict[str, str]:
    style = line_style(i)
    return {"colour": style["color"], "dash": _DASHES[style["linestyle"]], "symbol": _SYMBOLS[style["marker"]]}


def _group(group: Sequence[Outcome], metrics: Sequence[_Metric], n_diverged: int) -> dict[str, Any]:
    """Returns the runs of a contender under one budget.

    Args:
      group: those that are trained.
      metrics: what the page can show.
      n_diverged: number of its runs that ended without a result because they diverged.

    Returns:
      A dict with contender, budget, seeds and
      costs: cost ("tokens", "flops", "seconds", "parameters") -> its value for each run, at the end of the training;
      steps: updates;
      finals: metric -> {"runs": values, "mean": number, "text": the mean for readers};
      curves: metric -> steps, mean, low, high, interval_low and interval_high, lists of equal lengths; the interval is
        that of `mean_interval`.
    """
    found = [o.metrics() for o in group]
    return {
        "contender": group[0].case.label,
        "budget": group[0].case.budget,
        "seeds": [o.case.seed for o in group],
        "steps": found[0]["train_steps"],
        "costs": {cost: [_number(m[name]) for m in found] for cost, name in _COSTS.items()},
        "finals": {
            metric.key: _final(metric, [float(m[metric.final]) for m in found], n_diverged) for metric in metrics
        },
        "curves": {metric.key: _curve(metric, group) for metric in metrics},
    }


def _final(metric: _Metric, values: Sequence[float], n_diverged: int) -> dict[str, Any]:
    mean = math.nan if n_diverged else metric.shown(statistics.fmean(values))
    return {
        "runs": [_number(metric.shown(value)) for value in values],
        "mean": _number(mean),
        "text": f"{mean:.4f}" if mean < 1e5 else f"{mean:.4g}",
    }


def _curve(metric: _Metric, group: Sequence[Outcome]) -> dict[str, list[float | None]]:
    kind, name = metric.curve
    runs = [{row["step"]: float(row[name]) for row in o.rows if row["kind"] == kind and name in row} for o in group]
    # The loss before the first update is that of a random guess, for all contenders.
    steps = sorted(set.intersection(*map(set, runs)) - {0})
    if len(steps) > _MOST_POINTS:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, _MOST_POINTS).round().astype(int)]
    values_SxR = np.array([[run[step] for run in runs] for step in steps]).reshape(len(steps), len(runs))
    intervals_2xS = np.array([mean_interval(values_R) for values_R in values_SxR.tolist()]).reshape(-1, 2).T
    # With a value that is not finite, none of these is.
    lines = {"mean": values_SxR.mean(1), "low": values_SxR.min(1), "high": values_SxR.max(1)}
    lines |= dict(zip(("interval_low", "interval_high"), intervals_2xS, strict=True))
    shown = {key: [_number(metric.shown(value)) for value in line.tolist()] for key, line in lines.items()}
    return {"steps": [float(step) for step in steps], **shown}


def _difference(comparison: Comparison) -> dict[str, Any]:
    d = comparison.difference
    return {
        "contender": comparison.labels[0],
        "reference": comparison.labels[1],
        "budget": comparison.budget,
        "mean": _number(d.mean),
        "low": _number(d.low),
        "high": _number(d.high),
        "pairs": [_number(pair) for pair in d.pairs],
        "verdict": d.verdict,
        "cells": difference_row(comparison),
    }


def _samples(outcome: Outcome) -> list[dict[str, Any]]:
    case = outcome.case
    run = {"contender": case.label, "budget": case.budget, "seed": case.seed}
    last = [] if outcome.samples is None else [{**run, "step": None, "texts": outcome.samples["samples"]}]
    rows = [row for row in outcome.rows if row["kind"] == SAMPLES]
    return last + [{**run, "step": row["step"], "texts": row["texts"]} for row in rows]


def _number(value: float | None) -> float | None:
    """Rounds a number to more digits than the page shows; JSON has no NaN and no infinity."""
    return float(f"{value:.{_DIGITS}g}") if value is not None and math.isfinite(value) else None
