"""Budgets: gives a contender as many FLOPs, parameters or seconds as the reference has."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import config_dict

from psann_jax.bench.random_task import random_task
from psann_jax.config import Config, DataConfig, require
from psann_jax.config.data import DataSection
from psann_jax.config.io import parse, to_dict
from psann_jax.data.streamed_text import open_tokenizer
from psann_jax.models import flops
from psann_jax.models.network import Network
from psann_jax.utils.errors import UserError

EQUAL_TOKENS = "tokens", "parameters"  # budgets with equal training tokens


def match_budget(
    config: Config,
    reference: Config,
    budget: str,
    speed: Callable[[Config], float] | None = None,
    trained_vocabulary: Callable[[Any], int | None] = lambda data: None,
) -> Config:
    """Returns a config that is adjusted to the reference's budget.

    Args:
      config: the contender.
      reference: the config whose budget counts.
      budget: a name in `psann_jax.experiments.sweeps.BUDGETS`.
      speed: measures a config's tokens/s on this device; needed for the budget "seconds".
      trained_vocabulary: a text may yield fewer tokens than its config asks for, see the function of that name.

    Raises:
      ConfigError: no width of the MLPs gives the reference's number of parameters, or the two pad their rows to another
        extent although the budget is in tokens.
    """
    if config == reference:
        return config
    if budget in EQUAL_TOKENS:
        check_rows(config, reference, f"budget {budget}")
        if budget == "tokens":
            return config
    own, others = (_with_vocabulary(c, trained_vocabulary) for c in (config, reference))
    if budget == "parameters":
        width = _fitting_width(own, _network(others).n_params)
        return config if width == own.model.d_mlp else with_settings(config, {"model.d_mlp": width})
    if budget == "flops":
        factor = flops_per_token(others) / flops_per_token(own)
    else:
        assert speed is not None
        factor = speed(own) / speed(others)
    train = config.train
    # Of the reference's tokens: the contender's own steps or batches may be others.
    n_tokens = factor * reference.train.steps * reference.train.batch_tokens
    steps = max(round(n_tokens / train.batch_tokens), 1)
    warmup_steps = min(round(train.warmup_steps * steps / train.steps), steps)
    return with_settings(config, {"train.steps": steps, "train.warmup_steps": warmup_steps})


def check_rows(config: Config, reference: Config, where: str) -> None:
    """Raises ConfigError if padding takes other parts of two configs' rows, so that equally many have other tokens."""
    packs = getattr(config.data, "pack", True), getattr(reference.data, "pack", True)
    weights = getattr(config.data, "weights", ()), getattr(reference.data, "weights", ())
    why = f"than the reference's: padding makes the tokens of {where} unequal"
    require(packs[0] == packs[1], "data.pack", f"is another {why}")
    require(packs[0] or weights[0] == weights[1], "data.weights", f"are others {why}; set data.pack=True")


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns a checked copy of a config with settings changed by dotted name."""
    mapping = config_dict.ConfigDict(to_dict(config))
    mapping.update_from_flattened_dict(settings)
    return parse(mapping)


def trained_vocabulary(data: DataSection) -> int | None:
    """Returns the size of the tokenizer that is trained on a text, unless it is the one that the settings ask for.

    Trains the tokenizer unless it is in the cache. None also if the text cannot be read, which training reports.
    """
    if isinstance(data, DataConfig) and data.tokenizer.is_trained:
        with contextlib.suppress(UserError):
            size = open_tokenizer(data).vocab_size
            return None if size == data.tokenizer.vocab_size else size
    return None


def _with_vocabulary(config: Config, trained_vocabulary: Callable[[Any], int | None]) -> Config:
    """Returns a config with its real vocabulary, for counts and speeds alone."""
    size = None if getattr(config.model, "vocab_size", 1) else trained_vocabulary(config.data)
    return config if size is None else with_settings(config, {"model.vocab_size": size})


def flops_per_token(config: Config, n_params: int | None = None) -> float:
    """Returns the model FLOPs of training per token, see `psann_jax.models.flops`.

    Args:
      config: the experiment.
      n_params: parameters of the trained network, from which the vocabulary of a trained tokenizer follows; None: it
        has the size that the config asks for.
    """
    return _flops_per_token(dataclasses.replace(config, seed=0), n_params)  # equal for all seeds


@functools.cache
def _flops_per_token(config: Config, n_params: int | None) -> float:
    network = _network(config)
    if n_params is not None and n_params < network.n_params and not getattr(config.model, "vocab_size", 1):
        size: int = network.config.vocab_size
        of_a_token = _network(with_settings(config, {"model.vocab_size": size + 1})).n_params - network.n_params
        missing, rest = divmod(network.n_params - n_params, of_a_token)
        # Another version may have counted other parameters.
        if rest == 0 and missing < size:
            network = _network(with_settings(config, {"model.vocab_size": size - missing}))
    return flops.flops_per_token(config, network)


def _network(config: Config) -> Network:
    network: Network = random_task(config).network
    return network


def _fitting_width(config: Config, n_params: int) -> int:
    """Returns the multiple of 8 for d_mlp that comes nearest to a number of parameters, or the one that gives them."""
    if _network(config).n_params == n_params:
        return int(config.model.d_mlp)
    narrow, wide = (_network(with_settings(config, {"model.d_mlp": width})).n_params for width in (8, 16))
    width = 8 * max(round((n_params - narrow) / (wide - narrow)) + 1, 1) if wide > narrow else config.model.d_mlp
    require(
        math.isclose(_network(with_settings(config, {"model.d_mlp": width})).n_params, n_params, rel_tol=0.02),
        "model.d_mlp",
        f"of {config.model.base} cannot give {n_params:,} parameters, as the budget parameters requires",
    )
    return int(width)
