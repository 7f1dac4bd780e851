"""A trained network as plain arrays, with everything needed to use it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from psann_jax.config import Config, ConfigError, text_model
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.models.network import Network, make_network
from psann_jax.train.compatibility import check_compatible
from psann_jax.utils.errors import UserError


@dataclass(frozen=True)
class Training:
    """The training of some weights.

    Attributes:
      step: number of updates.
      data: fingerprint of the training data.
      val_loss: validation loss after this update, in nats per token; None if it was not measured.
    """

    step: int
    data: str
    val_loss: float | None


@dataclass(frozen=True)
class Weights:
    """A trained network.

    Attributes:
      config: of the run that trained it; model.vocab_size is set, data.max_length is the context length.
      params: nested dict of float32 numpy arrays.
      tokenizer: None if the source has none.
      training: None if the source does not describe it.
    """

    config: Config
    params: dict[str, Any]
    tokenizer: Tokenizer | None
    training: Training | None = None

    def network(self) -> Network:
        """Builds the network, with the precision of training, or fp32 on a CPU, where that is faster."""
        precision = "fp32" if jax.default_backend() == "cpu" else self.config.train.precision
        train = dataclasses.replace(self.config.train, precision=precision)
        return make_network(dataclasses.replace(self.config, train=train))


def check_weights(weights: Weights, source: object) -> Weights:
    """Returns the weights after checking that parameters, config and tokenizer match.

    Args:
      weights: to check.
      source: where they come from, for the message.

    Raises:
      UserError: they do not match.
    """
    config, tokenizer = weights.config, weights.tokenizer
    try:
        vocab_size = text_model(config).vocab_size
        if vocab_size < 1:
            raise UserError(f"{source}: its config is incomplete, it must have model.vocab_size")
        expected = weights.network().abstract
    except (ConfigError, ArithmeticError, TypeError, ValueError) as error:  # sizes that no network has
        raise UserError(f"{source}: its config describes no network: {error}") from error
    try:
        check_compatible(weights.params, expected, f"{source}: the parameters")
    except UserError as error:
        raise UserError("; ".join(line.strip() for line in str(error).splitlines())) from error
    if tokenizer is not None and tokenizer.vocab_size != vocab_size:
        raise UserError(f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, but the model {vocab_size}")
    return weights


def flat_params(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Maps dotted paths to arrays on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def nested_params(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flat_params`.

    Raises:
      ValueError: one path is the beginning of another.
    """
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"the name {path!r} begins with the name of another array")
        if leaf in node:
            raise ValueError(f"the name {path!r} is the beginning of another array's name")
        node[leaf] = value
    return nested
