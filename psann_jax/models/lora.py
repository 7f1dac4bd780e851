"""Low-rank adapters of the weights of linear layers.

Source: Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models". A weight W (in, out) becomes
W + alpha / rank * A @ B with A (in, rank) and B (rank, out), which starts at zero. Only A and B are trained. The sum is
formed once per step, before the network runs, so that every layer, kernel and base works with adapters unchanged.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from psann_jax.config import require
from psann_jax.nn.partition import ParamInfo

LORA = "lora"  # the entry of the parameters that holds the adapters, in the structure of the weights


@dataclass(frozen=True)
class Lora:
    """The adapters of a network.

    Attributes:
      rank: columns of A.
      scale: alpha / rank.
      infos: ParamInfo of the network's parameters without adapters.
    """

    rank: int
    scale: float
    infos: Mapping[str, Any]

    def with_adapters(self, abstract: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns shapes and infos of the parameters with adapters; only these are trained.

        Args:
          abstract: shapes of the parameters without adapters.

        Raises:
          ConfigError: no parameter is the weight of a linear layer.
        """

        def info(weight: ParamInfo) -> dict[str, ParamInfo]:
            *stacked, i, o = weight.axes
            return {"a": ParamInfo(LORA, (*stacked, i, None)), "b": ParamInfo(LORA, (*stacked, None, o))}

        adapted = _of_weights(self.infos, info)
        require(bool(adapted), "train.lora_rank", "has no effect: the model has no matrices")
        frozen = jax.tree.map(lambda i: dataclasses.replace(i, trainable=False), dict(self.infos))
        shapes = jax.eval_shape(lambda: self._initial(jax.random.key(0), abstract))
        return {**abstract, LORA: shapes}, {**frozen, LORA: adapted}

    def with_initial(self, params: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
        """Returns parameters with new adapters, which do not change what the network computes."""
        return {**params, LORA: self._initial(jax.random.fold_in(key, 1), params)}

    def _initial(self, key: jax.Array, weights: Mapping[str, Any]) -> dict[str, Any]:
        """A from U(-1 / sqrt(in), 1 / sqrt(in)), B zero."""
        keys = iter(jax.random.split(key, len(jax.tree.leaves(self.infos))))

        def pair(_: ParamInfo, weight: Any) -> dict[str, jax.Array]:
            *stacked, i, o = weight.shape
            bound = i**-0.5
            a = jax.random.uniform(next(keys), (*stacked, i, self.rank), jnp.float32, -bound, bound)
            return {"a": a, "b": jnp.zeros((*stacked, self.rank, o), jnp.float32)}

        return _of_weights(self.infos, pair, weights)

    def merge(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters of the network without adapters, with their products added to the weights."""

        def added(weights: Mapping[str, Any], adapters: Mapping[str, Any]) -> dict[str, Any]:
            changed = {}
            for name, adapter in adapters.items():
                if isinstance(weights[name], Mapping):
                    changed[name] = added(weights[name], adapter)
                else:
                    product = jnp.matmul(adapter["a"], adapter["b"], precision="highest")
                    changed[name] = weights[name] + self.scale * product
            return {**weights, **changed}

        return added({name: value for name, value in params.items() if name != LORA}, params[LORA])


def _of_weights(infos: Mapping[str, Any], make: Callable[..., Any], *trees: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a nested dict with ``make(info, *leaves)`` for each weight of a linear layer, and without the others."""
    made = {}
    for name, info in infos.items():
        leaves = [tree[name] for tree in trees]
        if isinstance(info, Mapping):
            made[name] = _of_weights(info, make, *leaves)
        elif info.kind == "matrix":
            made[name] = make(info, *leaves)
    return {name: value for name, value in made.items() if value}
