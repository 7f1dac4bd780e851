"""Model FLOPs of training per token, counted by formulas.

Counted is what the mathematics of an update needs, once: matrix products, attention and causal filters, forward and
backward, and both gradients of sharpness-aware minimisation. Not counted are what the backward pass recomputes to save
memory (train.remat), products that frozen weights (train.freeze) make unnecessary, elementwise operations and look-ups.
"""

from dataclasses import replace
from typing import Any

import jax

from psann_jax.config import Config, DecoderConfig, ModelConfig
from psann_jax.config.families import family
from psann_jax.models.network import Network
from psann_jax.nn.partition import ParamInfo

_KINDS = ("matrix", "mixing", "coordinate")  # of parameters of blocks that take part in matrix products
_AFTER_BLOCKS = {"norm", "head", "head_bias"}  # parameters to which no gradient comes through the blocks


def matmul_params(network: Network) -> int:
    """Counts the weights that take part in matrix products: the matrices of the blocks and the head."""
    sizes = jax.tree.map(lambda a, info: a.size if info.kind in _KINDS else 0, network.abstract, network.infos)
    return int(sum(jax.tree.leaves(sizes)) + _head_params(network))


def _head_params(network: Network) -> int:
    # A network without a vocabulary has an input and output layer that are negligible beside its blocks.
    return int(getattr(network.config, "vocab_size", 0) * network.config.d_model)


def _frozen_matmul_params(network: Network) -> int:
    """Counts those of `matmul_params` whose gradients no update computes."""

    def size(array: Any, info: ParamInfo) -> int:
        # The gradients of adapters follow from those of their matrices, which are computed although not used otherwise.
        is_adapted = network.lora is not None and info.kind == "matrix"
        return array.size if info.kind in _KINDS and not info.trainable and not is_adapted else 0

    frozen = sum(jax.tree.leaves(jax.tree.map(size, network.abstract, network.infos)))
    head = network.infos.get("head", network.infos.get("embed"))  # a tied head is the embedding
    has_frozen_head = isinstance(head, ParamInfo) and not head.trainable
    return int(frozen + (_head_params(network) if has_frozen_head else 0))


def has_backward_pass(network: Network) -> bool:
    """Returns whether gradients go through the blocks, which they do unless nothing before the head is trained.

    A Sudoku transformer's head comes before its next iteration.
    """
    before = {name: info for name, info in network.infos.items() if name not in _AFTER_BLOCKS}
    is_trained = any(info.trainable for info in jax.tree.leaves(before))
    return is_trained or bool(network.config.base == "sudoku")


def _blocks_share(network: Network) -> float:
    """The part of the FLOPs of the blocks that is computed: the forward pass alone is a third."""
    return 1.0 if has_backward_pass(network) else 1 / 3


def _training_weights(network: Network) -> float:
    """The `matmul_params`, each as a third for each of its products: forward, for its input, for itself."""
    share, weights = _blocks_share(network), matmul_params(network)
    if share == 1:
        return weights - _frozen_matmul_params(network) / 3
    trained = {name for name in ("norm", "head") if any(i.trainable for i in jax.tree.leaves(network.infos.get(name)))}
    return share * (weights + len(trained) * _head_params(network))


def training_flops(matmul_params: float, n_layers: int, width: float, length: float) -> float:
    """Matrix FLOPs of the forward and backward pass of one token in a decoder, without recomputation.

    Six for each parameter in a matrix product (Kaplan et al., 2020, "Scaling Laws for Neural Language Models"), and
    ``6 * n_layers * length * width`` for attention. Attention is counted causally: a token attends to half of the
    window on average, so this is half of a count over the full square. Document masks are not taken into account.

    Args:
      matmul_params: weights that take part in matrix products; not the embedding table, which is looked up. One that
        takes part in two products or one, as it or all before it is frozen, counts as two thirds or one third.
      n_layers: layers with attention.
      width: of queries, keys and values over all heads; the mean of keys and values where they differ.
      length: tokens in a window.
    """
    return 6.0 * matmul_params + 6.0 * n_layers * length * width


def attended_length(config: ModelConfig, length: int) -> float:
    """Length of a window without a sliding window in which a token attends to as many tokens, on average.

    A token attends to as many tokens as lie before it, up to `model.sliding_window`, counted as in `training_flops`.

    Args:
      config: the `model` section.
      length: tokens in a window.
    """
    most = getattr(config, "sliding_window", 0)
    return most * (2 - most / length) if 0 < most < length else length


def filter_taps(network: Network) -> int:
    """Counts the multiply-adds per token of the causal filters of a decoder: taps per feature, over all layers."""
    c = network.config
    if not isinstance(c, DecoderConfig):
        return 0
    wave = c.wave.kernel if c.wave.interleave or c.wave.replace else 0
    gate = c.spectral.k_fft if c.base == "sgrpsann" else 0
    return c.n_layers * c.d_model * (wave + gate)


def decoder_flops(network: Network, length: int) -> float:
    """Training FLOPs per token of a decoder with dot-product attention; see `training_flops`.

    A tap of a filter costs as much as a weight of a matrix, whether it is computed directly or otherwise.
    """
    share, c = _blocks_share(network), network.config
    weights = _training_weights(network) + share * filter_taps(network)
    return training_flops(weights, c.n_layers, share * c.d_model, attended_length(c, length))


def gravity_flops(network: Network, length: int) -> float:
    """Training FLOPs per token of a gravity model, whose scores are products of narrower head coordinates."""
    c = network.config
    width = _blocks_share(network) * (c.n_heads * c.d_head_coord + c.d_model) / 2
    return training_flops(_training_weights(network), c.n_layers, width, length)


def sudoku_flops(network: Network, length: int) -> float:
    """Training FLOPs per cell of a Sudoku transformer, over all iterations; each cell attends to all others."""
    c = network.config
    one_iteration = training_flops(_training_weights(network), c.n_layers, c.d_model, 2 * length)
    return float(c.iterations * one_iteration)


def flops_per_token(config: Config, network: Network) -> float:
    """Training FLOPs per token of an experiment: the formula of its family, for each gradient of an update."""
    one_gradient = float(family(config.model.base).get("flops")(network, config.data.max_length))
    return one_gradient * (2 if config.train.sam_rho else 1)


def forward_flops_per_token(config: Config, network: Network) -> float:
    """FLOPs per token of the forward pass alone, as in an evaluation; adapters (train.lora_rank) are not counted."""
    # All gradients together cost twice the forward pass, if none is left out.
    infos = jax.tree.map(lambda info: replace(info, trainable=True), network.infos)
    trained = replace(network, infos=infos)
    return float(family(config.model.base).get("flops")(trained, config.data.max_length)) / 3
