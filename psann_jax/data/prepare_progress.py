"""The progress of preparing a corpus: one bar, with tokens per second."""

import time
from collections.abc import Sequence
from typing import Self

from tqdm import tqdm

from psann_jax.data.piece_task import PieceTask
from psann_jax.utils.progress_stream import progress_stream, updates_in_place


class PrepareProgress:
    """A bar over the estimated bytes of text of all tasks, on stderr."""

    def __init__(self, tasks: Sequence[PieceTask], done: Sequence[bool], enabled: bool):
        """Starts the bar.

        Args:
          tasks: all tasks.
          done: whether each of them was done before.
          enabled: show the bar.
        """
        self._n_bytes = self._n_tokens = 0
        self._began = time.monotonic()
        sizes = [task.piece.piece.n_bytes for task in tasks]
        self._bar = tqdm(
            desc="tokenising",
            total=sum(sizes),
            initial=sum(size for size, is_done in zip(sizes, done, strict=True) if is_done),
            disable=not enabled,
            unit="B",
            unit_scale=True,
            file=progress_stream(),
            mininterval=0.1 if updates_in_place(progress_stream()) else 30,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, n_bytes: int, n_tokens: int) -> None:
        """Adds to the progress."""
        self.set(self._n_bytes + n_bytes, self._n_tokens + n_tokens)

    def set(self, n_bytes: int, n_tokens: int) -> None:
        """Sets the bytes of text and the tokens since the bar was made."""
        seconds = time.monotonic() - self._began
        self._bar.set_postfix_str(f"{n_tokens / seconds:,.0f} tokens/s", refresh=False)
        self._bar.update(n_bytes - self._n_bytes)
        self._n_bytes, self._n_tokens = n_bytes, n_tokens
