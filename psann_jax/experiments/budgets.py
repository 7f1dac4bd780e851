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
      ConfigError: no width of the MLPs gives the reference's number of parameters.
    """
    if budget == "tokens" or config == reference:
        return config
    if budget == "parameters":
        return _with_parameters(config, _network(reference).n_params)
    if budget == "flops":
        factor = flops_per_token(reference) / flops_per_token(config)
    else:
        assert speed is not None
        factor = speed(config) / speed(reference)
    train = config.train
    steps = max(round(train.steps * factor), 1)
    warmup_steps = min(round(train.warmup_steps * factor), steps)
    return with_settings(config, {"train.steps": steps, "train.warmup_steps": warmup_steps})


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns a checked copy of a config with settings changed by dotted name."""
    mapping = config_dict.ConfigDict(to_dict(config))
    mapping.update_from_flattened_dict(settings)
    return parse(mapping)


def flops_per_token(config: Config) -> float:
    """Returns the training FLOPs per token in matrix products, see `psann_jax.models.flops`."""
    return _flops_per_token(dataclasses.replace(config, seed=0))  # equal for all seeds


@functools.cache
def _flops_per_token(config: Config) -> float:
    return flops.flops_per_token(config, _network(config))


def _network(config: Config) -> Network:
    network: Network = random_task(config).network
    return network


def _with_parameters(config: Config, n_params: int) -> Config:
    """Sets d_mlp to the multiple of 8 that comes nearest to a number of parameters."""
    narrow, wide = (_network(with_settings(config, {"model.d_mlp": width})).n_params for width in (8, 16))
    width = 8 * max(round((n_params - narrow) / (wide - narrow)) + 1, 1) if wide > narrow else config.model.d_mlp
    fitted = with_settings(config, {"model.d_mlp": width})
    require(
        math.isclose(_network(fitted).n_params, n_params, rel_tol=0.02),
        "model.d_mlp",
        f"of {config.model.base} cannot give {n_params:,} parameters, as the budget parameters requires",
    )
    return fitted
