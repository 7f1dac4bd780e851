"""Windows of tokens by index: the rows of a batch, with segment ids and positions."""

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
    """

    def __init__(self, shard: Shard, length: int, pad_id: int, *, document_mask: bool = True, keep_last: bool = False):
        """Computes the number of windows; reads no tokens.

        Args:
          shard: the tokens.
          length: L.
          pad_id: token id of padding.
          document_mask: False makes the whole window one segment.
          keep_last: pad the last tokens, fewer than a window, to a window; otherwise they are dropped.
        """
        self._shard, self._length, self._pad_id = shard, length, pad_id
        self._document_mask = document_mask
        n_targets = max(shard.n_tokens - 1, 0)
        self._n_windows = -(-n_targets // length) if keep_last else n_targets // length

    def __len__(self) -> int:
        return self._n_windows

    def end(self, n: int) -> int:
        """Returns the number of tokens of the shard that the first `n` windows contain."""
        return min(n * self._length + 1, self._shard.n_tokens) if n else 0

    def __getitem__(self, i: int) -> Element:
        if not 0 <= i < self._n_windows:
            raise IndexError(f"window {i} of {self._n_windows}")
        start = i * self._length
        stop = min(start + self._length + 1, self._shard.n_tokens)
        starts = np.zeros(1, np.int64)
        if self._document_mask:
            starts = np.maximum(self._shard.starts(start, stop) - start, 0)
        return _element(self._shard.tokens_N[start:stop], starts, self._length, self._pad_id)


class DocumentRows:
    """One document per row, padded to L + 1 tokens; a longer one continues in the next rows, which overlap by one.

    Elements have the arrays of `PackedWindows`, with segment id 1 for the document and 0 for padding.
    """

    def __init__(self, shard: Shard, length: int, pad_id: int):
        """Computes the rows of each document; the arguments are those of `PackedWindows`."""
        self._shard, self._length, self._pad_id = shard, length, pad_id
        n_targets = np.diff(shard.offsets) - 1  # at least one: a document has bos and eos
        self._row_ends = np.cumsum(-(-n_targets // length))

    def __len__(self) -> int:
        return int(self._row_ends[-1]) if len(self._row_ends) else 0

    def end(self, n: int) -> int:
        """See `PackedWindows`."""
        return self._span(n - 1)[1] if n else 0

    def __getitem__(self, i: int) -> Element:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        start, stop = self._span(i)
        return _element(self._shard.tokens_N[start:stop], np.zeros(1, np.int64), self._length, self._pad_id)

    def _span(self, i: int) -> tuple[int, int]:
        """The first token of row i, and the one after its last."""
        document = int(np.searchsorted(self._row_ends, i, "right"))
        row = i - int(self._row_ends[document - 1]) if document else i
        start = int(self._shard.offsets[document]) + row * self._length
        return start, min(start + self._length + 1, int(self._shard.offsets[document + 1]))


Windows = PackedWindows | DocumentRows


def padding_row(length: int, pad_id: int) -> Element:
    """Returns an element without tokens, which fills up a batch."""
    return _element(np.zeros(0, np.int32), np.zeros(0, np.int64), length, pad_id)


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
