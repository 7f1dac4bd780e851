"""How the rows of a batch are divided over processes."""

from dataclasses import dataclass

import numpy as np

from psann_jax.utils.errors import UserError


@dataclass(frozen=True)
class BatchShard:
    """The rows of every batch that one process reads.

    The devices of a TPU host need not be neighbours in the mesh, so the rows of a process need not be contiguous.

    Attributes:
      parts: which of the equal parts of a batch, in ascending order.
      count: number of parts.
      readers: the `parts` of all processes, without repetition; () if this process alone reads.
    """

    parts: tuple[int, ...]
    count: int
    readers: tuple[tuple[int, ...], ...] = ()

    def reader(self) -> tuple[int, int]:
        """Returns the index of this process among those that read different rows, and their number.

        Processes that read the same rows count as one.

        Raises:
          UserError: processes have some rows in common and others not.
        """
        if not self.readers:
            return 0, 1
        if sum(map(len, self.readers)) != self.count:
            raise UserError("data.stream: some rows of a batch belong to several processes; choose another mesh")
        return self.readers.index(self.parts), len(self.readers)

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns the indices of the rows in a batch, ascending.

        Args:
          batch_size: B, rows over all processes.

        Raises:
          UserError: the number of parts does not divide B.
        """
        if batch_size % self.count:
            raise UserError(
                f"train.batch_tokens: makes batches of {batch_size} rows, which cannot be divided into "
                f"{self.count} equal parts"
            )
        rows: np.ndarray = np.arange(batch_size).reshape(self.count, -1)[list(self.parts)].reshape(-1)
        return rows


WHOLE_BATCH = BatchShard((0,), 1)
