"""Distributions of amplitude, frequency and damping of the sine activations before and after training."""

import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from psann_jax.models.network import Network, Params
from psann_jax.nn.sine import Sine
from psann_jax.plots.style import COLOURS, new_figure
from psann_jax.runs.restore import LoadedRun
from psann_jax.utils.errors import UserError

VALUES = ("amplitude", "frequency", "damping")
_BEFORE, _AFTER = COLOURS[4], COLOURS[0]


def sine_values(network: Network, params: Params) -> dict[str, np.ndarray]:
    """Returns the effective values of all sine activations of a network.

    Returns:
      By module of a block, such as "mlp" and "wave": amplitude, frequency and damping, (3, layers, features).

    Raises:
      UserError: the network has no sine activations.
    """

    def values(params: Params) -> dict[str, list[jax.Array]]:
        found: dict[str, list[jax.Array]] = {}
        for path, module in nnx.iter_graph(network.merge(params)):
            if isinstance(module, Sine):
                # Scanned layers have their features stacked.
                layers = jnp.stack([jnp.atleast_2d(value) for value in module.values()])
                found.setdefault(str(path[-2]), []).append(layers)
        return found

    modules = jax.device_get(jax.jit(values)(params))
    if not modules:
        raise UserError(f"model.mlp_activation: is {network.config.mlp_activation}; there are no sine activations")
    return {name: np.concatenate(layers, axis=1).astype(np.float64) for name, layers in modules.items()}


def draw_sine(path: str | os.PathLike[str], run: LoadedRun) -> dict[str, dict[str, np.ndarray]]:
    """Plots box plots by layer as a PNG: boxes from the 25th to the 75th percentile, whiskers from the 5th to the 95th.

    Args:
      path: the file to write.
      run: from `load_run`.

    Returns:
      The values of `sine_values` "before" training, drawn with the run's seed, and "after".

    Raises:
      UserError: the run has no sine activations.
    """
    after = sine_values(run.network, run.params)
    before = sine_values(run.network, jax.jit(run.network.init)(jax.random.key(run.config.seed)))
    figure = new_figure(12, 0.6 + 3.6 * len(after))
    grid = figure.subplots(len(after), len(VALUES), squeeze=False)
    for row, (module, arrays) in zip(grid, after.items(), strict=True):
        for axes, name, early, late in zip(row, VALUES, before[module], arrays, strict=True):
            _boxes(axes, early, -0.2, _BEFORE, "//")
            _boxes(axes, late, 0.2, _AFTER, "")
            layers = np.arange(1, len(late) + 1)
            axes.set_xticks(layers, [str(layer) for layer in layers])
            axes.set_xlabel("layer")
            axes.set_ylabel(f"{name} ({module})")
            axes.grid(alpha=0.3, axis="y")
    handles = [
        Patch(facecolor="white", edgecolor=_BEFORE, hatch="//", label="before training"),
        Patch(facecolor="white", edgecolor=_AFTER, label=f"after {run.step:,} updates"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9)
    figure.savefig(path, format="png")
    return {"before": before, "after": after}


def _boxes(axes: Axes, values_NxF: np.ndarray, offset: float, colour: str, hatch: str) -> None:
    axes.boxplot(
        list(values_NxF),
        positions=np.arange(1, len(values_NxF) + 1) + offset,
        widths=0.3,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": "white", "edgecolor": colour, "hatch": hatch},
        medianprops={"color": colour, "linewidth": 2},
        whiskerprops={"color": colour},
        capprops={"color": colour},
    )
