"""Effective values of the sine activations of a run, before and after training."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psann_jax.models.network import Network, Params
from psann_jax.nn.sine import Sine
from psann_jax.runs.restore import LoadedRun
from psann_jax.utils.errors import UserError


def sine_history(run: LoadedRun) -> dict[str, dict[str, np.ndarray]]:
    """Returns the `sine_values` "before" training, created from the run's seed, and "after".

    "before" is {} for a run that started from given weights: these may be gone or trained further.

    Raises:
      UserError: the run has no sine activations.
    """
    after = sine_values(run.network, run.params)
    if not run.starts_from_seed:
        return {"before": {}, "after": after}
    initial = jax.jit(run.network.init)(jax.random.key(run.config.seed))
    return {"before": sine_values(run.network, initial), "after": after}


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
