"""The part of a sweep's report about losses by position and by source: titles, texts and rows of tables."""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from psann_jax.experiments.ladder_tables import Parts
from psann_jax.experiments.outcome import Outcome
from psann_jax.train.loss_parts import LossParts, standard_error

_POSITIONS = (
    "The last validation loss by the number of tokens that the model sees before the target, in its "
    "document and window."
)
_SOURCES = "The last validation loss by file, or by source where it has no files or too many."
_READ = (
    " Means over the seeds, and after ± the standard error over evaluation texts, from blocks of successive windows. A "
    "row with a minus is the difference from the reference, and its standard error includes the spread over the seeds. "
    "These rows describe where a difference comes from; they have no verdicts."
)
_KINDS = {"position": ("Loss by position", _POSITIONS + _READ), "source": ("Loss by source", _SOURCES + _READ)}


def loss_parts(finished: Sequence[Outcome], reference: str) -> list[Parts]:
    """Returns a table for each kind of parts that at least one run has more than one of.

    Args:
      finished: the trained runs.
      reference: the contender that the others are compared with.
    """
    return [(title, text, rows) for kind, (title, text) in _KINDS.items() if (rows := _rows(finished, reference, kind))]


def _rows(finished: Sequence[Outcome], reference: str, kind: str) -> list[list[str]]:
    groups: dict[tuple[object, ...], dict[int, LossParts]] = {}
    labels: dict[tuple[object, ...], str] = {}
    for outcome in finished:
        if outcome.windows is not None and kind in outcome.windows.parts:
            case = outcome.case
            groups.setdefault(case.group, {})[case.seed] = outcome.windows.parts[kind]
            labels[case.group] = case.label if case.budget == "tokens" else f"{case.label} ({case.budget})"
    names = list(dict.fromkeys(name for runs in groups.values() for parts in runs.values() for name in parts.names))
    if len(names) < 2:
        return []
    rows = [["contender", "seeds", *names]]
    for group, runs in groups.items():
        rows.append([labels[group], str(len(runs)), *_cells(names, _losses(runs), "{:.4f}")])
        others = groups.get((reference, *group[1:]), {})
        seeds = sorted(runs.keys() & others.keys())
        if group[0] != reference and seeds and all(_alike(runs[s], others[s]) for s in seeds):
            found = _differences([runs[s] for s in seeds], [others[s] for s in seeds])
            title = f"{labels[group]} − {reference}"
            rows.append([title, str(len(seeds)), *_cells(names, found, "{:+.4f}")])
    return rows


def _alike(a: LossParts, b: LossParts) -> bool:
    return a.names == b.names and np.array_equal(a.weight_WxP, b.weight_WxP)


def _losses(runs: Mapping[int, LossParts]) -> dict[str, tuple[float, float]]:
    first = next(iter(runs.values()))
    alike = [parts.nll_WxP for parts in runs.values() if _alike(parts, first)]
    mean = LossParts(first.names, np.mean(alike, axis=0), first.weight_WxP)
    return {part.name: (part.loss, part.stderr) for part in mean.losses()}


def _differences(runs: Sequence[LossParts], others: Sequence[LossParts]) -> dict[str, tuple[float, float]]:
    """The mean difference of each part, and the root of its variances over texts and over seeds."""
    found = {}
    nll_SxWxP = np.array([a.nll_WxP.astype(np.float64) - b.nll_WxP for a, b in zip(runs, others, strict=True)])
    for p, name in enumerate(runs[0].names):
        weight_W = runs[0].weight_WxP[:, p]
        total = float(weight_W.sum(dtype=np.float64))
        if total:
            by_seed = (nll_SxWxP[:, :, p].sum(axis=1) / total).tolist()
            of_text = standard_error(nll_SxWxP[:, :, p].mean(axis=0), weight_W)
            over_seeds = statistics.variance(by_seed) / len(by_seed) if len(by_seed) > 1 else math.nan
            found[name] = statistics.fmean(by_seed), math.sqrt(of_text**2 + over_seeds)
    return found


def _cells(names: Sequence[str], found: Mapping[str, tuple[float, float]], form: str) -> list[str]:
    cells = []
    for name in names:
        loss, stderr = found.get(name, (math.nan, math.nan))
        cells.append("-" if math.isnan(loss) else form.format(loss) + (f" ± {stderr:.4f}" if stderr >= 0 else ""))
    return cells
