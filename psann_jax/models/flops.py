"""Training FLOPs per token in matrix products, counted by formulas."""

import jax

from psann_jax.config import Config
from psann_jax.config.families import family
from psann_jax.models.network import Network


def matmul_params(network: Network) -> int:
    """Counts the weights that take part in matrix products: the matrices of the blocks and the head."""
    kinds = ("matrix", "mixing", "coordinate")
    sizes = jax.tree.map(lambda a, info: a.size if info.kind in kinds else 0, network.abstract, network.infos)
    # A network without a vocabulary has an input and output layer that are negligible beside its blocks.
    head = getattr(network.config, "vocab_size", 0) * network.config.d_model
    return int(sum(jax.tree.leaves(sizes)) + head)


def training_flops(matmul_params: int, n_layers: int, width: float, length: int) -> float:
    """Matrix FLOPs of the forward and backward pass of one token in a decoder, without recomputation.

    Six for each parameter in a matrix product (Kaplan et al., 2020, "Scaling Laws for Neural Language Models"), and
    ``6 * n_layers * length * width`` for attention. Attention is counted causally: a token attends to half of the
    window on average, so this is half of a count over the full square. Document masks are not taken into account.

    Args:
      matmul_params: weights that take part in matrix products; not the embedding table, which is looked up.
      n_layers: layers with attention.
      width: of queries, keys and values over all heads; the mean of keys and values where they differ.
      length: tokens in a window.
    """
    return 6.0 * matmul_params + 6.0 * n_layers * length * width


def decoder_flops(network: Network, length: int) -> float:
    """Training FLOPs per token of a decoder with dot-product attention; see `training_flops`."""
    return training_flops(matmul_params(network), network.config.n_layers, network.config.d_model, length)


def gravity_flops(network: Network, length: int) -> float:
    """Training FLOPs per token of a gravity model, whose scores are products of narrower head coordinates."""
    c = network.config
    width = (c.n_heads * c.d_head_coord + c.d_model) / 2
    return training_flops(matmul_params(network), c.n_layers, width, length)


def sudoku_flops(network: Network, length: int) -> float:
    """Training FLOPs per cell of a Sudoku transformer, over all iterations; each cell attends to all others."""
    c = network.config
    one_iteration = training_flops(matmul_params(network), c.n_layers, c.d_model, 2 * length)
    return float(c.iterations * one_iteration)


def flops_per_token(config: Config, network: Network) -> float:
    """Training FLOPs per token of an experiment, by the formula of its family."""
    return float(family(config.model.base).get("flops")(network, config.data.max_length))
