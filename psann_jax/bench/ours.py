"""A config of this project as a contender: its compiled training step on random data."""

import functools
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax

from psann_jax.bench.device_time import kernel_times
from psann_jax.bench.random_task import random_task
from psann_jax.bench.timing import time_steps
from psann_jax.config import Config
from psann_jax.models.flops import flops_per_token
from psann_jax.nn.mesh import make_mesh
from psann_jax.train.compilation import compile_steps
from psann_jax.train.hardware import device_description, mfu, peak_memory_mb
from psann_jax.train.mesh import put_batch
from psann_jax.train.step import init_state

_ATTENTION = ("attention", "gravity", "full_attention")  # operations; a model has one of them


class Ours:
    """The training step of a config, driven as in `psann_jax.train.loop`.

    Attributes:
      facts: n_params, compile_s, compiled_memory_mb (of a step, by the compiler, in 10^6 bytes), kernels, device,
        attention (its implementation), versions, flops_per_token (see `psann_jax.models.flops`), and inference (what
        `run` processes with training=False; None if the task has no inference step).
    """

    def __init__(self, config: Config):
        """Compiles the step and creates the state."""
        jax.config.update("jax_enable_compilation_cache", False)  # cache hits would be reported as compile times
        self._config = config
        self._task = random_task(config)
        self._mesh = make_mesh(config.mesh)
        self._task.check_mesh(self._mesh)
        self._compiled = compile_steps(self._task, config, self._mesh)
        with jax.set_mesh(self._mesh):
            self._state = init_state(self._task.network, config.train, self._compiled.spec, config.seed)
        self._batches = self._task.train_batches(0)
        kernels = {op: sorted(names) for op, names in self._compiled.implementations.items()}
        self.facts: dict[str, Any] = {
            "n_params": self._task.network.n_params,
            "compile_s": self._compiled.seconds,
            "compiled_memory_mb": self._compiled.memory_mb,
            "device": device_description(),
            "kernels": kernels,
            "attention": " and ".join(name for op in _ATTENTION for name in kernels.get(op, ())),
            "inference": self._task.INFERENCE,
            "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
            "flops_per_token": flops_per_token(config, self._task.network),
        }

    def run(self, n_steps: int, training: bool = True) -> list[float]:
        """Runs steps and returns the seconds of each. On an accelerator, the next step is dispatched before waiting.

        Args:
          n_steps: number of steps.
          training: False runs the inference step of the task instead.
        """
        step = self._train_step if training else self._inference_step
        return time_steps(step, n_steps, ahead=jax.default_backend() != "cpu")

    def _train_step(self) -> Callable[[], object]:
        with jax.set_mesh(self._mesh):
            batch = put_batch(next(self._batches), self._compiled.batch)
            self._state, metrics = self._compiled.train_step(self._state, batch)
        return lambda: metrics["loss"].block_until_ready()

    def _inference_step(self) -> Callable[[], object]:
        with jax.set_mesh(self._mesh):
            batch = put_batch(next(self._batches), self._compiled.batch)
            result = self._infer(self._state["params"], batch)
        return lambda: jax.block_until_ready(result)

    @functools.cached_property
    def _infer(self) -> Callable[..., Any]:
        return jax.jit(self._task.infer)

    def kernel_times(self) -> dict[str, Any] | None:
        """See `psann_jax.bench.device_time.kernel_times`; None on other devices than GPUs."""
        return kernel_times(self.run) if jax.default_backend() == "gpu" else None

    def peak_memory_mb(self) -> float:
        """See `psann_jax.train.hardware.peak_memory_mb`."""
        return peak_memory_mb()

    def mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOP/s utilisation, see `psann_jax.train.hardware.mfu`; None on hardware with unknown peak."""
        return mfu(tokens_per_s, self.facts["flops_per_token"], self._config.train.precision)


def make(config: Config) -> Ours:
    """Creates the contender in the process of its worker."""
    return Ours(config)
