"""A few updates on a mesh, with what the checks compare afterwards."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from psann_jax.config import Config
from psann_jax.selftest.text import MarkovText
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.compilation import compile_steps
from psann_jax.train.mesh import put_batch
from psann_jax.train.step import init_state


def make_task(config: Config) -> LanguageModel:
    """Language modelling of a Markov chain."""
    return LanguageModel(config, MarkovText(config.model.vocab_size, config.data.max_length).as_data())


class Training:
    """A training in progress.

    Attributes:
      task: the model and its text.
      losses: of the updates taken so far.
      metrics: of the last update.
      state: the training state.
      memory_mb: of a step on one device, by the compiler's account, in 2**20 bytes.
    """

    def __init__(self, config: Config, mesh: Mesh):
        """Compiles the step and makes the state."""
        self.task = make_task(config)
        self._mesh, self._compiled = mesh, compile_steps(self.task, config, mesh)
        self.memory_mb = self._compiled.memory_mb
        with jax.set_mesh(mesh):
            self.state = init_state(self.task.network, config.train, self._compiled.spec, config.seed)
        self._batches = self.task.train_batches(0)
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def take(self, n_steps: int) -> "Training":
        """Takes updates and waits for each."""
        for _ in range(n_steps):
            self.start_step()()
        return self

    def start_step(self) -> Callable[[], object]:
        """Starts an update; returns what waits for its end and records its loss."""
        with jax.set_mesh(self._mesh):
            batch = put_batch(next(self._batches), self._compiled.batch)
            self.state, metrics = self._compiled.train_step(self.state, batch)

        def wait() -> None:
            self.metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            self.losses.append(self.metrics["loss"])

        return wait

    def params(self) -> Any:
        """The parameters as numpy arrays."""
        return jax.device_get(self.state["params"])

    def share_held(self) -> float:
        """Of all parameters, the share that the first device holds."""
        leaves = jax.tree.leaves(self.state["params"])
        return sum(x.addressable_shards[0].data.size for x in leaves) / sum(x.size for x in leaves)


@dataclass(frozen=True)
class Fall:
    """How far a loss has come, in nats."""

    first: float
    last: float

    @classmethod
    def of(cls, losses: list[float]) -> "Fall":
        return cls(losses[0], losses[-1])

    @property
    def share(self) -> float:
        """Of the first loss, what is gone; NaN if a loss is not finite."""
        return (self.first - self.last) / self.first if math.isfinite(self.last) else math.nan


def loss_difference(losses: list[float], reference: list[float]) -> float:
    """The greatest relative difference of two curves at the same step; NaN if one is not finite."""
    a, b = np.array(losses), np.array(reference)
    return float(np.max(np.abs(a - b) / np.abs(b)))


def params_difference(params: Any, reference: Any, start: Any) -> float:
    """How far apart two trainings from one start have ended, as a share of the way that the reference has gone."""
    apart = sum(float(np.sum((a - b) ** 2)) for a, b in zip(*map(jax.tree.leaves, (params, reference)), strict=True))
    way = sum(float(np.sum((a - b) ** 2)) for a, b in zip(*map(jax.tree.leaves, (reference, start)), strict=True))
    return math.sqrt(apart / way)
