"""A config of this project as a contender: its own compiled training step on random tokens."""

import functools
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax

from psann_jax.bench.laps import lap_times
from psann_jax.bench.random_task import random_task
from psann_jax.config import Config, NGTConfig, SudokuConfig
from psann_jax.models.network import Network, Params
from psann_jax.models.sudoku import filled
from psann_jax.nn.mesh import make_mesh
from psann_jax.train.compilation import compile_steps
from psann_jax.train.hardware import device_description, mfu, peak_memory_mb, training_flops_per_token
from psann_jax.train.mesh import put_batch
from psann_jax.train.step import init_state

MFU_FORMULA = (
    "tokens/s * (6 * parameters in matrix products, head included + 6 * layers * length * d_model) / peak FLOP/s"
)


class Ours:
    """The training step of a config, as `psann_jax.train.loop` drives it.

    Attributes:
      facts: n_params, compile_s, device, attention and versions.
    """

    def __init__(self, config: Config):
        """Compiles the step and makes the state; model.vocab_size must be set."""
        jax.config.update("jax_enable_compilation_cache", False)  # its hits would be reported as compile times
        self._config = config
        self._task = random_task(config)
        self._mesh = make_mesh(config.mesh)
        self._task.check_mesh(self._mesh)
        self._compiled = compile_steps(self._task, config, self._mesh)
        with jax.set_mesh(self._mesh):
            self._state = init_state(self._task.network, config.train, self._compiled.spec, config.seed)
        self._batches = self._task.train_batches(0)
        self.facts: dict[str, Any] = {
            "n_params": self._task.network.n_params,
            "compile_s": self._compiled.seconds,
            "device": device_description(),
            "attention": self._task.attention(),
            "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
            "mfu_formula": MFU_FORMULA,
        }

    def run(self, n_steps: int, training: bool = True) -> list[float]:
        """Takes steps; seconds of each. On an accelerator the next step is on its way while one is waited for.

        Args:
          n_steps: how many.
          training: False: a step only fills the grids of a batch, for base sudoku.
        """
        step = self._step if training else self._fill_step
        return lap_times(step, n_steps, ahead=jax.default_backend() != "cpu")

    def _step(self) -> Callable[[], object]:
        with jax.set_mesh(self._mesh):
            batch = put_batch(next(self._batches), self._compiled.batch)
            self._state, metrics = self._compiled.train_step(self._state, batch)
        return lambda: metrics["loss"].block_until_ready()

    def _fill_step(self) -> Callable[[], object]:
        with jax.set_mesh(self._mesh):
            batch = put_batch(next(self._batches), self._compiled.batch)
            grids = self._fill(self._state["params"], batch["puzzles"])
        return grids.block_until_ready

    @functools.cached_property
    def _fill(self) -> Callable[..., jax.Array]:
        def fill(params: Params, puzzles: jax.Array) -> jax.Array:
            grids: jax.Array = self._task.network.merge(params).run(puzzles, lambda logits: filled(logits, puzzles))
            return grids[-1]

        return jax.jit(fill)

    def peak_memory_mb(self) -> float:
        """See `psann_jax.train.hardware.peak_memory_mb`."""
        return peak_memory_mb()

    def mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOP/s utilisation (`MFU_FORMULA`), None on hardware whose peak is not known."""
        return mfu(tokens_per_s, flops_per_token(self._config, self._task.network), self._config.train.precision)


def matrix_params(network: Network) -> int:
    """Weights that take part in matrix products: the matrices of the blocks, and the head."""
    kinds = ("matrix", "coordinate")
    sizes = jax.tree.map(lambda a, info: a.size if info.kind in kinds else 0, network.abstract, network.infos)
    # Base sudoku has no vocabulary; what enters and leaves its blocks is a 200th of its products.
    head = getattr(network.config, "vocab_size", 0) * network.config.d_model
    return int(sum(jax.tree.leaves(sizes)) + head)


def flops_per_token(config: Config, network: Network) -> float:
    """Of training, see `training_flops_per_token`; a Sudoku transformer's cells are its tokens."""
    model, length = config.model, config.data.max_length
    # Scores of distances are products of head coordinates, narrower than the values.
    gravity = isinstance(model, NGTConfig)
    width = (model.n_heads * model.d_head_coord + model.d_model) / 2 if gravity else model.d_model
    flops = training_flops_per_token(matrix_params(network), model.n_layers, width, length)
    if isinstance(model, SudokuConfig):  # every cell attends to all 81
        flops += 6.0 * model.n_layers * length * width
        flops *= model.iterations
    return flops


def make(config: Config) -> Ours:
    """The contender, in the process of its worker."""
    return Ours(config)
