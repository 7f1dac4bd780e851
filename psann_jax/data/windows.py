"""Windows of tokens by index: what a model sees at once, with segments and positions."""

import numpy as np

from psann_jax.data.shards import Shard

Element = dict[str, np.ndarray]


class PackedWindows:
    """The documents of a shard as one stream, cut into windows of L + 1 tokens that overlap by one.

    Window i holds the tokens [i * L, i * L + L], so every token but the first is a label once. An element has three
    int32 arrays of shape (L + 1,):

      tokens: ids.
      segments: 1, 2, ... for the documents within the window, 0 for padding.
      positions: 0, 1, ... from the document's first token in the window.
    """

    def __init__(self, shard: Shard, length: int, pad_id: int, *, document_mask: bool = True, keep_last: bool = False):
        """Args:
        shard: the tokens.
        length: L.
        pad_id: what follows the last token.
        document_mask: False makes the whole window one segment.
        keep_last: whether the last tokens, fewer than a window, are one too, padded; else they are left out.
        """
        self._shard, self._length, self._pad_id = shard, length, pad_id
        self._document_mask = document_mask
        n_labels = max(shard.n_tokens - 1, 0)
        self._n_windows = -(-n_labels // length) if keep_last else n_labels // length

    def __len__(self) -> int:
        return self._n_windows

    def __getitem__(self, i: int) -> Element:
        if not 0 <= i < self._n_windows:
            raise IndexError(f"window {i} of {self._n_windows}")
        start = i * self._length
        stop = min(start + self._length + 1, self._shard.n_tokens)
        begins = np.zeros(1, np.int64)
        if self._document_mask:
            offsets = self._shard.offsets
            first, last = np.searchsorted(offsets, start, "right") - 1, np.searchsorted(offsets, stop, "left")
            begins = np.maximum(offsets[first:last] - start, 0)
        return _element(self._shard.tokens_N[start:stop], begins, self._length, self._pad_id)


class DocumentRows:
    """One document a row, padded to L + 1 tokens; a longer one continues in the next rows, which overlap by one.

    Elements are those of `PackedWindows`, with the one segment 1 and padding.
    """

    def __init__(self, shard: Shard, length: int, pad_id: int):
        """See `PackedWindows`."""
        self._shard, self._length, self._pad_id = shard, length, pad_id
        n_labels = np.diff(shard.offsets) - 1  # at least one: a document has bos and eos
        self._last_row = np.cumsum(-(-n_labels // length))

    def __len__(self) -> int:
        return int(self._last_row[-1]) if len(self._last_row) else 0

    def __getitem__(self, i: int) -> Element:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        document = int(np.searchsorted(self._last_row, i, "right"))
        row = i - int(self._last_row[document - 1]) if document else i
        start = int(self._shard.offsets[document]) + row * self._length
        stop = min(start + self._length + 1, int(self._shard.offsets[document + 1]))
        return _element(self._shard.tokens_N[start:stop], np.zeros(1, np.int64), self._length, self._pad_id)


Windows = PackedWindows | DocumentRows


def padding(length: int, pad_id: int) -> Element:
    """An element of no tokens, for filling up a batch."""
    return _element(np.zeros(0, np.int32), np.zeros(0, np.int64), length, pad_id)


def _element(ids: np.ndarray, begins: np.ndarray, length: int, pad_id: int) -> Element:
    """Pads `ids` and numbers its segments, which begin at `begins`."""
    n = len(ids)
    tokens, segment_ids, positions = np.full(length + 1, pad_id, np.int32), *np.zeros((2, length + 1), np.int32)
    sizes = np.diff(begins, append=n)
    tokens[:n] = ids
    segment_ids[:n] = np.repeat(np.arange(1, len(begins) + 1), sizes)
    positions[:n] = np.arange(n) - np.repeat(begins, sizes)
    return {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}
