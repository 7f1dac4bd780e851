"""The interface between the training loop and a task."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from psann_jax.data.batches import BatchShard
from psann_jax.models.network import Params
from psann_jax.train.loss_parts import TargetParts
from psann_jax.train.update import Objective


class Stream(Protocol):
    """Data of which a batch is not a function of the step, but of a state."""

    def state(self) -> Any:
        """Returns the state after the batches returned so far, JSON-like."""

    def check_shard(self, shard: BatchShard) -> None:
        """Raises UserError if the rows of this process cannot be read on their own."""

    def restore(self, states: Sequence[Any], process: int) -> None:
        """Makes the batches continue where they were when `state` returned these; called before the first.

        Args:
          states: of all processes, in their order.
          process: index of this process.
        """


class Task(Objective, Protocol):
    """What the training loop needs from a task in addition to its objective.

    Attributes:
      TARGET: what the loss is a mean over, for figures and reports.
    """

    TARGET: str

    def describe(self) -> dict[str, object]:
        """Returns facts about model and data for the header of a run."""

    def warnings(self) -> tuple[str, ...]:
        """Returns one line about each setting or property of the data that is probably a mistake."""
        return ()

    def fingerprint(self) -> str:
        """Returns a hash of the training data; a run resumes only with the same one."""

    def tokenizer_bytes(self) -> bytes | None:
        """Returns the tokenizer file to save with each checkpoint, if the task has a tokenizer."""

    def check_mesh(self, mesh: Mesh) -> None:
        """Raises ConfigError if the mesh cannot split the model."""

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a global batch of `batch_size` rows."""

    def train_batches(self, start_step: int, shard: BatchShard) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's rows of the training batches from `start_step` on, without end."""

    def stream(self) -> Stream | None:
        """Returns the stream that the training batches come from, None if they are a function of the step."""
        return None

    def valid_batches(self, batch_size: int, shard: BatchShard) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's rows of the validation batches, the same ones at each call."""

    def target_parts(self) -> TargetParts | None:
        """Returns the parts of the validation data whose losses an evaluation reports, None if there are none."""
        return None

    def sample_texts(self, params: Params, mesh: Mesh) -> list[dict[str, Any]]:
        """Returns continuations of eval.prompts, a setting of language models only, see `psann_jax.sample.prompts`.

        Args:
          params: of `network`, on the mesh. All processes call it together.
          mesh: the devices of the run.

        Raises:
          UserError: the model has diverged.
        """
        raise NotImplementedError

    def tokens_per_row(self) -> float:
        """Returns the mean number of tokens, without padding, in a row of a training batch."""

    def phases(self) -> dict[int, str]:
        """Returns the steps at which the training data change, with a name for what follows; often empty."""

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Returns evaluation results, among them "loss" and "ppl", from sums over all validation batches."""
