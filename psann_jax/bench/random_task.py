"""The task of an experiment on random data."""

from typing import Any

from psann_jax.config import Config
from psann_jax.config.families import family


def random_task(config: Config) -> Any:
    """Returns the task of the experiment (`psann_jax.train.loop.Task`) on random data; makes no device arrays.

    Its attribute `config` is the experiment with all sizes that follow from the data, such as model.vocab_size.
    """
    chosen = family(config.model.base)
    return chosen.get("task")(config, chosen.get("random_data")(config))


def with_vocabulary(config: Config) -> Config:
    """Returns the experiment with all sizes that follow from its data, without reading them."""
    resolved: Config = random_task(config).config
    return resolved
