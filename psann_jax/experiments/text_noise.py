"""How much a difference of losses varies with the choice of the evaluation text: a bootstrap over its windows."""

import math
from collections.abc import Sequence

import numpy as np

from psann_jax.experiments.statistics import Noise
from psann_jax.train.evaluation import WindowLosses

_RESAMPLES = 2000
_SEED = 0  # equal for all comparisons, which therefore see the same resampled texts
_MIN_BLOCKS = 8


def text_noise(contender: Sequence[WindowLosses | None], reference: Sequence[WindowLosses | None]) -> Noise | None:
    """Estimates the variance of mean(contender) - mean(reference) over evaluation texts.

    Both are evaluated on the same windows, so the difference of each window is resampled (a paired bootstrap). Windows
    that follow each other are often parts of one document. Therefore blocks of about W^(1/3) successive windows are
    drawn, the rate that suits the estimation of a variance (Künsch, 1989; Hall, Horowitz and Jing, 1995). The variance
    over seeds already contains how seeds act on single windows, which is counted here once more: the interval is
    slightly too wide rather than too narrow.

    Args:
      contender: the windows of the contender's runs, None for a run without them.
      reference: those of the reference's runs.

    Returns:
      The variance, with the number of blocks that fit into the text minus one as degrees of freedom. None if a run has
      no losses by window, if the runs were evaluated on different windows, or if the text is shorter than 8 blocks.
    """
    runs = [*contender, *reference]
    known = [run for run in runs if run is not None]
    if not known or len(known) < len(runs):
        return None
    weight_W = known[0].weight_W
    if not same_windows(known):
        return None
    n = len(weight_W)
    block = max(round(n ** (1 / 3)), 1)
    n_blocks = n // block
    if n_blocks < _MIN_BLOCKS:
        return None
    means = [np.mean([run.nll_W for run in side if run is not None], axis=0) for side in (contender, reference)]
    variance = _variance(means[0] - means[1], weight_W, block)
    return Noise(variance, n_blocks - 1) if math.isfinite(variance) else None


def same_windows(runs: Sequence[WindowLosses | None]) -> bool:
    """Returns whether runs were evaluated on the same windows of the same data, as far as that is known."""
    known = [run for run in runs if run is not None]
    return all(run.data == known[0].data and np.array_equal(run.weight_W, known[0].weight_W) for run in known)


def _variance(nll_W: np.ndarray, weight_W: np.ndarray, block: int) -> float:
    """The variance of sum(nll) / sum(weight) over texts of as many windows, from overlapping blocks."""
    n = len(nll_W)
    n_draws = n // block
    # Sums over the block that starts at each window.
    totals = [np.concatenate(([0.0], np.cumsum(x, dtype=np.float64))) for x in (nll_W, weight_W)]
    nll_S, weight_S = (total[block:] - total[:-block] for total in totals)
    starts = np.random.default_rng(_SEED).integers(n - block + 1, size=(_RESAMPLES, n_draws))
    losses = nll_S[starts].sum(axis=1) / weight_S[starts].sum(axis=1)
    # n_draws blocks around their own mean vary less than around the true one, as for a sample variance.
    return float(losses.var(ddof=1)) * n_draws / (n_draws - 1)
