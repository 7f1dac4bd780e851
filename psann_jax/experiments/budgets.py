"""Budgets: gives a contender as many FLOPs, parameters or seconds as the reference has."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import config_dict

from psann_jax.bench.random_task import random_task
from psann_jax.config import Config, require
from psann_jax.config.io import parse, to_dict
from psann_jax.models import flops
from psann_jax.models.network import Network

EQUAL_TOKENS = "tokens", "parameters"  # budgets with equal training tokens


def match_budget(
    config: Config, reference: Config, budget: str, speed: Callable[[Config], float] | None = None
) -> Config:
    """Returns a config that is adjusted to the reference's budget.

    Args:
      config: the contender.
      reference: the config whose budget counts.
      budget: a name in `psann_jax.experiments.sweeps.BUDGETS`.
      speed: measures a config's tokens/s on this device; needed for the budget "seconds".

    Raises:
      ConfigError: no width of the MLPs gives the reference's number of parameters, or only one of the two pads its rows
        although the budget is in tokens.
    """
    if config == reference:
        return config
    if budget in EQUAL_TOKENS:
        same_rows = getattr(config.data, "pack", True) == getattr(reference.data, "pack", True)
        require(
            same_rows, "data.pack", f"differs from the reference's; padding makes the tokens of budget {budget} unequal"
        )
        return config if budget == "tokens" else _with_parameters(config, _network(reference).n_params)
    if budget == "flops":
        factor = flops_per_token(reference) / flops_per_token(config)
    else:
        assert speed is not None
        factor = speed(config) / speed(reference)
    train = config.train
    # Of the reference's tokens: the contender's own steps or batches may be others.
    n_tokens = factor * reference.train.steps * reference.train.batch_tokens
    steps = max(round(n_tokens / train.batch_tokens), 1)
    warmup_steps = min(round(train.warmup_steps * steps / train.steps), steps)
    return with_settings(config, {"train.steps": steps, "train.warmup_steps": warmup_steps})


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns a checked copy of a config with settings changed by dotted name."""
    mapping = config_dict.ConfigDict(to_dict(config))
    mapping.update_from_flattened_dict(settings)
    return parse(mapping)


def flops_per_token(config: Config) -> float:
    """Returns the model FLOPs of training per token, see `psann_jax.models.flops`."""
    return _flops_per_token(dataclasses.replace(config, seed=0))  # equal for all seeds


@functools.cache
def _flops_per_token(config: Config) -> float:
    return flops.flops_per_token(config, _network(config))


def _network(config: Config) -> Network:
    network: Network = random_task(config).network
    return network


def _with_parameters(config: Config, n_params: int) -> Config:
    """Sets d_mlp to the multiple of 8 that comes nearest to a number of parameters, unless the config has that many."""
    if _network(config).n_params == n_params:
        return config
    narrow, wide = (_network(with_settings(config, {"model.d_mlp": width})).n_params for width in (8, 16))
    width = 8 * max(round((n_params - narrow) / (wide - narrow)) + 1, 1) if wide > narrow else config.model.d_mlp
    fitted = with_settings(config, {"model.d_mlp": width})
    require(
        math.isclose(_network(fitted).n_params, n_params, rel_tol=0.02),
        "model.d_mlp",
        f"of {config.model.base} cannot give {n_params:,} parameters, as the budget parameters requires",
    )
    return fitted
