"""From the config of an experiment to a network whose parameters are a plain nested dict."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import Config
from psann_jax.config.families import family
from psann_jax.models.lora import LORA, Lora
from psann_jax.nn.partition import freeze, info_tree

Params = dict[str, Any]

# Compute dtype by train.precision.
DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}


@dataclass(frozen=True)
class Network:
    """A model split once into a static graph and its parameters.

    Attributes:
      config: the `model` section, with all sizes set.
      graphdef: the static structure, which `merge` joins with parameters.
      abstract: nested dict of `jax.ShapeDtypeStruct` with the structure of the parameters.
      infos: nested dict of `ParamInfo` with the structure of the parameters.
      make: constructor of the module, with the keyword `rngs`.
      lora: the adapters that the parameters hold in addition to the module's; None if there are none.
    """

    config: Any
    graphdef: Any
    abstract: Params
    infos: Params
    make: Any
    lora: Lora | None = None

    def init(self, key: jax.Array) -> Params:
        """Returns initial float32 parameters. Call it inside `jax.jit` with out_shardings to create them sharded."""
        params: Params = nnx.to_pure_dict(nnx.state(self.make(rngs=nnx.Rngs(params=key))))
        return params if self.lora is None else self.lora.with_initial(params, key)

    def merge(self, params: Params) -> Any:
        """Returns the module with these parameters, for use inside a traced function."""
        return nnx.merge(self.graphdef, params if self.lora is None else self.lora.merge(params))

    def scans_layers(self) -> bool:
        """Returns whether layers, or groups of layers, run as a loop on the devices of the current mesh."""
        module = nnx.merge(self.graphdef, {name: part for name, part in self.abstract.items() if name != LORA})
        return bool(module.scans() or module.remat == "full")

    @property
    def n_params(self) -> int:
        """Number of parameters, including frozen ones."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract))

    def size(self) -> str:
        """Returns the number of parameters in words, and how many of them are trained if not all are."""
        sizes = jax.tree.map(lambda leaf, info: leaf.size if info.trainable else 0, self.abstract, self.infos)
        n_trained = sum(jax.tree.leaves(sizes))
        return f"{self.n_params:,} parameters" + (f", {n_trained:,} trained" if n_trained < self.n_params else "")


def build(
    config: Any,
    *,
    dtype: jnp.dtype = jnp.float32,
    remat: str = "none",
    scan_layers: bool | None = None,
    sequence: bool = False,
) -> Network:
    """Builds the network of a `model` section; makes no arrays.

    Args:
      config: the section of any family, with all sizes set.
      dtype: of the computation; parameters are float32.
      remat: what the backward pass recomputes, one of REMATS of the network's class.
      scan_layers: compile one layer and scan over all, or unroll; None: by device, see `Layered`.
      sequence: shard activations between layers along the window, over the mesh axis `tensor`.

    Raises:
      ConfigError: the network does not support an option.
    """
    options = {"dtype": dtype, "remat": remat, "scan_layers": scan_layers, "sequence": sequence}
    make = functools.partial(family(config.base).get("network"), config, **options)
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(params=0)))
    graphdef, state = nnx.split(module)
    return Network(config, graphdef, nnx.to_pure_dict(state), info_tree(state), make)


def make_network(config: Config, vocab_size: int | None = None) -> Network:
    """Builds the network of an experiment; makes no arrays.

    Args:
      config: the experiment.
      vocab_size: of its tokenizer; None for a model without one, or if model.vocab_size is set.

    Raises:
      ConfigError: the network does not support an option, or `train.freeze` does not fit it.
    """
    network = build(
        config.model.with_sizes(vocab_size, config.data.max_length),
        dtype=jnp.dtype(DTYPES[config.train.precision]),
        remat=config.train.remat,
        scan_layers=config.train.scan_layers,
        sequence=config.mesh.sequence,
    )
    if config.train.lora_rank:
        rank = config.train.lora_rank
        lora = Lora(rank, config.train.lora_alpha / rank, network.infos)
        abstract, infos = lora.with_adapters(network.abstract)
        return replace(network, abstract=abstract, infos=infos, lora=lora)
    return replace(network, infos=freeze(network.infos, config.train.freeze)) if config.train.freeze else network
