"""From a `model` section to a network whose parameters are a plain nested dict."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import DecoderConfig, NGTConfig, SudokuConfig, VanillaConfig
from psann_jax.models.decoder import Decoder
from psann_jax.models.ngt import NGT
from psann_jax.models.sudoku import Sudoku
from psann_jax.models.vanilla import Vanilla
from psann_jax.nn.partition import info_tree

# The dataclass of the `model` section -> its network. Base names are in psann_jax.config.BASES.
NETWORKS: dict[type, Any] = {
    DecoderConfig: Decoder,
    NGTConfig: NGT,
    SudokuConfig: Sudoku,
    VanillaConfig: Vanilla,
}

Params = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A model split once into a static graph and its parameters.

    Attributes:
      config: the `model` section, with the vocabulary size set.
      graphdef: static structure; `merge` joins it with parameters.
      abstract: nested dict of `jax.ShapeDtypeStruct`, shaped like the parameters.
      infos: nested dict of `ParamInfo`, shaped like the parameters.
    """

    config: Any
    graphdef: Any
    abstract: Params
    infos: Params
    make: Any

    def init(self, key: jax.Array) -> Params:
        """Initial parameters, float32. Call it inside `jax.jit` with out_shardings to make them sharded."""
        params: Params = nnx.to_pure_dict(nnx.state(self.make(rngs=nnx.Rngs(params=key))))
        return params

    def merge(self, params: Params) -> Any:
        """The module with these parameters, for use inside a traced function."""
        return nnx.merge(self.graphdef, params)

    @property
    def n_params(self) -> int:
        """Number of parameters, frozen ones included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract))


def build(
    config: Any,
    *,
    dtype: jnp.dtype = jnp.float32,
    remat: str = "none",
    scan_layers: bool = True,
    sequence: bool = False,
) -> Network:
    """The network of a `model` section; makes no arrays.

    Args:
      config: an instance of a class in `NETWORKS`, with vocab_size set.
      dtype: of the computation; parameters are float32.
      remat: what the backward pass recomputes: none, dots, block or full.
      scan_layers: one compiled layer for all, or unrolled.
      sequence: on a mesh, activations between layers are split along the window over the axis `tensor`.
    """
    options = {"dtype": dtype, "remat": remat, "scan_layers": scan_layers, "sequence": sequence}
    make = functools.partial(NETWORKS[type(config)], config, **options)
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(params=0)))
    graphdef, state = nnx.split(module)
    return Network(config, graphdef, nnx.to_pure_dict(state), info_tree(state), make)
