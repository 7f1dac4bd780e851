"""Short training runs on a mesh, and comparisons of their losses and parameters."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from psann_jax.config import Config, text_model
from psann_jax.selftest.check import Findings
from psann_jax.selftest.text import MarkovText
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.compilation import compile_steps
from psann_jax.train.mesh import put_batch
from psann_jax.train.step import init_state

# Fraction of the first loss that 20 updates must remove; 0.65 to 0.69 was measured.
MIN_LOSS_DROP = 0.3


def make_task(config: Config) -> LanguageModel:
    """Creates a language-modelling task on text from a Markov chain."""
    return LanguageModel(config, MarkovText(text_model(config).vocab_size, config.data.max_length).as_data())


class Training:
    """A training run that is advanced update by update.

    Attributes:
      task: the model and its data.
      losses: losses of all updates so far, in nats per token.
      metrics: metrics of the last update.
      state: training state.
      memory_mb: memory of a step on one device as estimated by the compiler, in MB.
    """

    def __init__(self, config: Config, mesh: Mesh):
        """Compiles the step and creates the state."""
        self.task = make_task(config)
        self._mesh, self._compiled = mesh, compile_steps(self.task, config, mesh)
        self.memory_mb = self._compiled.memory_mb
        with jax.set_mesh(mesh):
            self.state = init_state(self.task.network, config.train, self._compiled.spec, config.seed)
        self._batches = self.task.train_batches(0)
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def take(self, n_steps: int) -> "Training":
        """Runs updates, waiting for each; returns self."""
        for _ in range(n_steps):
            self.start_step()()
        return self

    def start_step(self) -> Callable[[], object]:
        """Starts an update; returns a function that waits for its end and records its loss."""
        with jax.set_mesh(self._mesh):
            batch = put_batch(next(self._batches), self._compiled.batch)
            self.state, metrics = self._compiled.train_step(self.state, batch)

        def wait() -> None:
            self.metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            self.losses.append(self.metrics["loss"])

        return wait

    def params(self) -> Any:
        """Returns the parameters as numpy arrays."""
        return jax.device_get(self.state["params"])

    def fraction_held(self) -> float:
        """Returns the fraction of all parameters that the first device holds."""
        leaves = jax.tree.leaves(self.state["params"])
        return sum(x.addressable_shards[0].data.size for x in leaves) / sum(x.size for x in leaves)


def expect_loss_drop(findings: Findings, run: str, losses: list[float]) -> None:
    """Records a failure unless the loss of a run fell: two runs that learn nothing would agree on everything."""
    first, last = losses[0], losses[-1]
    fraction = (first - last) / first if math.isfinite(last) else math.nan
    findings.expect(fraction >= MIN_LOSS_DROP, f"{run}: the loss changed from {first:.3f} to {last:.3f}")


def loss_difference(losses: list[float], reference: list[float]) -> float:
    """Returns the largest relative difference of two loss curves at the same update; NaN if a loss is not finite."""
    a, b = np.array(losses), np.array(reference)
    return float(np.max(np.abs(a - b) / np.abs(b)))


def params_difference(params: Any, reference: Any, start: Any) -> float:
    """Returns the distance between two results of training, relative to the distance the reference moved.

    Args:
      params: final parameters to compare.
      reference: final parameters of the reference run.
      start: initial parameters of both runs.
    """
    apart = sum(float(np.sum((a - b) ** 2)) for a, b in zip(*map(jax.tree.leaves, (params, reference)), strict=True))
    moved = sum(float(np.sum((a - b) ** 2)) for a, b in zip(*map(jax.tree.leaves, (reference, start)), strict=True))
    return math.sqrt(apart / moved)
