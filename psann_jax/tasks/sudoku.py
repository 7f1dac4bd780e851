"""Sudoku: the iterative transformer, its loss over the empty cells, and batches of puzzles."""

import dataclasses
from collections.abc import Iterator
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.config import Config, PuzzlesConfig
from psann_jax.config.checks import refuse_inactive
from psann_jax.config.sudoku import BUCKETS
from psann_jax.data.batches import WHOLE_BATCH, BatchShard
from psann_jax.data.sudoku.loader import PuzzleData, load_puzzles
from psann_jax.models.network import Params, make_network
from psann_jax.models.sudoku import empty_cell_sums, filled
from psann_jax.tasks.sudoku_scores import left_out, solved_fractions
from psann_jax.train.evaluation import NLL_ROWS, WEIGHT_ROWS
from psann_jax.train.mesh import check_heads
from psann_jax.train.metrics import perplexity
from psann_jax.train.update import Batch, Stats


class SudokuTask:
    """Filling the empty cells of puzzles.

    Attributes:
      TARGET: what the loss is a mean over, for reports.
      INFERENCE: what `infer` processes, for measurements.
      config: the experiment.
      network: the model.
      data: the puzzles.
    """

    TARGET = "empty cell"
    INFERENCE: str | None = "puzzles"

    def __init__(self, config: Config, data: PuzzleData):
        """Builds the network.

        Raises:
          ConfigError: a training setting has no effect on Sudoku.
        """
        refuse_inactive(config.train, "train", "with base sudoku", "label_smoothing", "z_loss")
        self.data, self.network = data, make_network(config)
        self.config = dataclasses.replace(config, model=self.network.config)

    @classmethod
    def load(cls, config: Config, *, progress: bool = True) -> "SudokuTask":
        """Reads or generates the puzzles of the config, or finds them in the cache, and builds the network."""
        puzzles = cast(PuzzlesConfig, config.data)
        return cls(config, load_puzzles(puzzles, progress=progress and jax.process_index() == 0))

    def describe(self) -> dict[str, object]:
        """Facts for the header of a run."""
        lines = (line.split(maxsplit=1) for line in self.data.describe(self.config.train.steps).splitlines())
        return {name: fact for name, fact in lines}  # noqa: C416  dict(lines) would have a narrower type

    def warnings(self) -> tuple[str, ...]:
        """Ratings of which too few puzzles are evaluated."""
        rows = self.data.valid_rows(self._max_valid_puzzles())
        rare = left_out(self.data.valid.buckets_N[rows])
        return (f"validation: {rare}",) if rare else ()

    # --- what the training step needs -----------------------------------------------------------------

    def weight(self, batch: Batch) -> jax.Array:
        """Number of empty cells in a batch."""
        return jnp.sum(batch["puzzles"] == 0, dtype=jnp.float32)

    def loss(
        self, params: Params, batch: Batch, key: jax.Array | None, step: jax.Array | None = None
    ) -> tuple[jax.Array, Stats]:
        """Sum of the cross entropy over the empty cells of a batch, averaged over all iterations.

        Args:
          params: of `network`.
          batch: puzzles and solutions (B, 81), buckets (B,).
          key: for dropout; None disables it, for evaluation.
          step: has no effect.

        Returns:
          The loss, and the sums nll (the same), correct (cells, after the last iteration) and weight; without a key
          also nll and weight by puzzle, and the number of puzzles and of solved puzzles in each bucket.
        """
        del step
        puzzles, solutions, buckets = (batch[name] for name in ("puzzles", "solutions", "buckets"))

        def read(logits: jax.Array) -> tuple[Stats, jax.Array]:
            solved = jnp.all(filled(logits, puzzles) == solutions, axis=-1)
            return empty_cell_sums(logits, puzzles, solutions), solved

        sums, solved_TxB = self.network.merge(params).run(puzzles, read, dropout_key=key)
        loss = jnp.mean(sums["nll"])
        stats = {"nll": loss, "correct": sums["correct"][-1], "weight": self.weight(batch)}
        if key is None:
            stats[NLL_ROWS] = jnp.mean(sums["nll_B"], axis=0)
            stats[WEIGHT_ROWS] = jnp.sum(puzzles == 0, axis=-1, dtype=jnp.float32)
            for i, name in enumerate(BUCKETS):
                stats[f"puzzles_{name}"] = jnp.sum(buckets == i, dtype=jnp.float32)
                stats[f"solved_{name}"] = jnp.sum(solved_TxB[-1] & (buckets == i), dtype=jnp.float32)
        return loss, stats

    def infer(self, params: Params, batch: Batch) -> jax.Array:
        """Fills the grids of a batch, (B, 81), with the number of iterations of the config."""
        puzzles = batch["puzzles"]
        grids: jax.Array = self.network.merge(params).run(puzzles, lambda logits: filled(logits, puzzles))
        return grids[-1]

    def statistics(self, params: Params, batch: Batch) -> Stats:
        """Evaluation already reports everything."""
        return {}

    def check_mesh(self, mesh: jax.sharding.Mesh) -> None:
        """Raises ConfigError if the mesh does not divide the heads."""
        check_heads(mesh, self.config.model.n_heads)

    # --- data -----------------------------------------------------------------------------------------

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch of `batch_size` puzzles."""
        grids = jax.ShapeDtypeStruct((batch_size, 81), jnp.uint8)
        return {"puzzles": grids, "solutions": grids, "buckets": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}

    def train_batches(self, start_step: int, shard: BatchShard = WHOLE_BATCH) -> Iterator[dict[str, np.ndarray]]:
        """Yields a process's rows of the batches from `start_step` on, without end."""
        return self.data.train_batches(
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            steps=self.config.train.steps,
            start_step=start_step,
            shard=shard,
        )

    def stream(self) -> None:
        """No stream: a batch is a function of the step."""

    def valid_batches(self, batch_size: int, shard: BatchShard = WHOLE_BATCH) -> Iterator[dict[str, np.ndarray]]:
        """Yields a process's rows of the fixed validation batches, in order."""
        return self.data.valid_batches(
            batch_size=batch_size,
            max_puzzles=self._max_valid_puzzles(),
            shard=shard,
        )

    def _max_valid_puzzles(self) -> int:
        return -(-self.config.eval.max_tokens // self.config.data.max_length)

    def target_parts(self) -> None:
        """No parts: the position of a cell says nothing about how much the model sees."""

    def fingerprint(self) -> str:
        """A hash of the puzzles and their split."""
        return self.data.fingerprint

    def tokenizer_bytes(self) -> None:
        """Returns None: digits need no tokenizer."""

    def tokens_per_row(self) -> float:
        """Cells of a puzzle."""
        return self.config.data.max_length

    def phases(self) -> dict[int, str]:
        """The steps at which a phase of the curriculum begins, with its ratings; {} if there is only one phase."""
        phases = self.data.phases(self.config.train.steps)
        return phases if len(phases) > 1 else {}

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Computes the evaluation results from the sums over all batches.

        Returns:
          loss (of all iterations) and ppl, accuracy (over the empty cells, last iteration), tokens (empty cells), and
          the fractions of solved puzzles, see `solved_fractions`.
        """
        loss = sums["nll"] / sums["weight"]
        counts = {name: (sums[f"solved_{name}"], sums[f"puzzles_{name}"]) for name in BUCKETS}
        return {
            "loss": loss,
            "ppl": perplexity(loss),
            "accuracy": sums["correct"] / sums["weight"],
            "tokens": sums["weight"],
            **solved_fractions(counts),
        }
