"""Windows of tokens by index: the rows of a batch, with segment ids and positions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from psann_jax.data.shards import Shard

Element = dict[str, np.ndarray]


class PackedWindows:
    """Windows of L + 1 tokens, overlapping by one, over the documents of a shard as one stream.

    Window i holds the tokens i * L to i * L + L, so every token but the first is a target exactly once. An element has
    three int32 arrays of shape (L + 1,):

      tokens: token ids.
      segment_ids: 1, 2, ... for the documents within the window, 0 for padding.
      positions: 0, 1, ... from the first token of the document in the window.

    If only some tokens of the shard are targets, a fourth array, `scored`, is 1 for these.

    With a stride S < L, window i starts at token i * S, and `scored` is 1 for the targets that count in this window:
    those of the first window, and of the last S tokens of each later one, so that every target counts exactly once.
    With at least L - S tokens before it in its window, each sees those of its document among them.
    """

    def __init__(
        self,
        shard: Shard,
        length: int,
        pad_id: int,
        *,
        document_mask: bool = True,
        keep_last: bool = False,
        stride: int | None = None,
    ):
        """Computes the number of windows; reads no tokens.

        Args:
          shard: the tokens.
          length: L.
          pad_id: token id of padding.
          document_mask: False makes the whole window one segment.
          keep_last: pad the last tokens, fewer than a window, to a window; otherwise they are dropped.
          stride: S, 1 to L; None: L.
        """
        self._shard, self._length, self._pad_id = shard, length, pad_id
        self._document_mask, self._stride = document_mask, stride or length
        n_targets = max(shard.n_tokens - 1, 0)
        self._n_windows = int(_n_rows(n_targets, length, self._stride)) if keep_last else n_targets // length

    def __len__(self) -> int:
        return self._n_windows

    def start(self, i: int) -> int:
        """Returns the position in the shard of the first token of window i."""
        return i * self._stride

    def end(self, n: int) -> int:
        """Returns the number of tokens of the shard that the first `n` windows contain."""
        return min(self.start(n - 1) + self._length + 1, self._shard.n_tokens) if n else 0

    def n_within(self, max_tokens: int) -> int:
        """Returns how many windows have at most `max_tokens` targets in total."""
        return max((max_tokens - self._length) // self._stride + 1, 0)

    def __getitem__(self, i: int) -> Element:
        if not 0 <= i < self._n_windows:
            raise IndexError(f"window {i} of {self._n_windows}")
        start = self.start(i)
        stop = min(start + self._length + 1, self._shard.n_tokens)
        starts = np.zeros(1, np.int64)
        if self._document_mask:
            starts = np.maximum(self._shard.starts(start, stop) - start, 0)
        element = _element(self._shard.tokens_N[start:stop], starts, self._length, self._pad_id)
        return element | _scored(self._shard, (start, stop), self._length, self._stride, is_first=i == 0)


class DocumentRows:
    """One document per row, padded to L + 1 tokens; a longer one continues in the next rows, which overlap by one.

    Elements have the arrays of `PackedWindows`, with segment id 1 for the document and 0 for padding. With a stride,
    rows of one document start as far apart, like the windows of `PackedWindows`.
    """

    def __init__(self, shard: Shard, length: int, pad_id: int, *, stride: int | None = None):
        """Computes the rows of each document; the arguments are those of `PackedWindows`."""
        self._shard, self._length, self._pad_id = shard, length, pad_id
        self._stride = stride or length
        n_targets = np.diff(shard.offsets) - 1  # at least one: a document has bos and eos
        self._row_ends = np.cumsum(_n_rows(n_targets, length, self._stride))

    def __len__(self) -> int:
        return int(self._row_ends[-1]) if len(self._row_ends) else 0

    def start(self, i: int) -> int:
        """See `PackedWindows`."""
        return self._span(i)[0]

    def end(self, n: int) -> int:
        """See `PackedWindows`."""
        return self._span(n - 1)[1] if n else 0

    def n_within(self, max_tokens: int) -> int:
        """See `PackedWindows`; padding counts like targets."""
        n_documents = len(self._row_ends)
        # A document costs its first row whole, and the stride for each other one.
        costs = self._row_ends * self._stride + np.arange(1, n_documents + 1) * (self._length - self._stride)
        whole = int(np.searchsorted(costs, max_tokens, "right"))
        rows, rest = (int(self._row_ends[whole - 1]), max_tokens - int(costs[whole - 1])) if whole else (0, max_tokens)
        return rows + max((rest - self._length) // self._stride + 1, 0)

    def __getitem__(self, i: int) -> Element:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        start, stop = self._span(i)
        element = _element(self._shard.tokens_N[start:stop], np.zeros(1, np.int64), self._length, self._pad_id)
        is_first = self._place(i)[1] == 0
        return element | _scored(self._shard, (start, stop), self._length, self._stride, is_first=is_first)

    def _place(self, i: int) -> tuple[int, int]:
        """The document of row i, and the number of its rows before that."""
        document = int(np.searchsorted(self._row_ends, i, "right"))
        return document, i - int(self._row_ends[document - 1]) if document else i

    def _span(self, i: int) -> tuple[int, int]:
        """The first token of row i, and the one after its last."""
        document, row = self._place(i)
        start = int(self._shard.offsets[document]) + row * self._stride
        return start, min(start + self._length + 1, int(self._shard.offsets[document + 1]))


Windows = PackedWindows | DocumentRows


def padding_row(like: Element, pad_id: int) -> Element:
    """Returns an element with the arrays of another one but without tokens, which fills up a batch."""
    empty = _element(np.zeros(0, np.int32), np.zeros(0, np.int64), len(like["tokens"]) - 1, pad_id)
    return like | empty


def is_target(batch: Mapping[str, Any]) -> Any:
    """Returns which tokens of windows, but the first of each, are predicted from the one before, (..., L) bool.

    The others are padding, the first token of a document, or not `scored`.

    Args:
      batch: arrays of NumPy or JAX as in `PackedWindows`, possibly with leading axes.
    """
    segment_ids = batch["segment_ids"]
    found = (segment_ids[..., 1:] == segment_ids[..., :-1]) & (segment_ids[..., 1:] > 0)
    return found & (batch["scored"][..., 1:] > 0) if "scored" in batch else found


def _n_rows(n_targets: Any, length: int, stride: int) -> Any:
    """The number of windows that cover this many targets, one or more of them."""
    return np.where(np.greater(n_targets, 0), 1 + np.maximum(-(-(n_targets - length) // stride), 0), 0)


def _scored(shard: Shard, span: tuple[int, int], length: int, stride: int, *, is_first: bool) -> Element:
    """The array `scored` of `PackedWindows`, which windows that do not overlap lack if all tokens are targets."""
    if stride == length and shard.scored_N is None:
        return {}
    scored = np.arange(length + 1) > (0 if is_first else length - stride)
    if shard.scored_N is not None:
        marks = shard.scored_N[slice(*span)]
        scored[: len(marks)] &= marks > 0
    return {"scored": scored.astype(np.int32)}


def _element(ids: np.ndarray, starts: np.ndarray, length: int, pad_id: int) -> Element:
    """Pads `ids` to length + 1 and numbers its segments, which begin at `starts`."""
    n = len(ids)
    tokens, segment_ids, positions = np.full(length + 1, pad_id, np.int32), *np.zeros((2, length + 1), np.int32)
    sizes = np.empty_like(starts)  # np.diff(starts, append=n), which would take a quarter of the time
    sizes[:-1], sizes[-1:] = starts[1:] - starts[:-1], n - starts[-1:]
    tokens[:n] = ids
    segment_ids[:n] = np.repeat(np.arange(1, len(starts) + 1), sizes)
    positions[:n] = np.arange(n) - starts.repeat(sizes)
    return {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}
