"""The validation text of a run as batches, and what other batches of text share with it."""

import copy
import itertools
from collections.abc import Sequence
from typing import Self

import grain
import numpy as np

from psann_jax.config import DataConfig, require
from psann_jax.data.batches import WHOLE_BATCH, BatchShard
from psann_jax.data.shards import Shard
from psann_jax.data.target_parts import TextParts
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.data.windows import DocumentRows, Element, PackedWindows, Windows, padding_row
from psann_jax.utils.errors import UserError

_FEW_WINDOWS, _FEW_TOKENS = 2, 1000  # validation texts below either size get a warning


class ValidText:
    """Validation batches of a tokenised text.

    A batch is a dict of int32 arrays of shape (B, L + 1): tokens, segment_ids and positions, and scored if only some
    tokens are targets, see `PackedWindows`. Each process gets the rows of its `BatchShard`.

    Attributes:
      tokenizer: the tokenizer of the text.
      fingerprint: a hash that changes with the text and the tokenizer.
      valid_windows: windows of the validation text.
      n_valid_documents: number of documents.
      n_valid_tokens: number of tokens, including bos and eos.
      n_valid_windows: number of windows (rows, if `data.pack` is off) of L tokens.
      bytes_per_token: bytes of UTF-8 per predicted token of the whole validation text.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        valid: Shard,
        names: Sequence[tuple[str, int]],
        fingerprint: str,
    ):
        """Cuts validation text into windows.

        Args:
          config: the `data` section.
          tokenizer: the tokenizer that the text was encoded with.
          valid: the encoded text.
          names: in its order, the name of each file or other source and the number of its documents; () if unknown.
          fingerprint: a hash that changes with the text and the tokenizer.

        Raises:
          UserError: the text has no targets.
        """
        self.tokenizer, self.fingerprint = tokenizer, fingerprint
        self._config, self._valid, self._names = config, valid, tuple(names)
        self.valid_windows = self._windows(valid, keep_last=True)
        if self.has_scored and not np.any(valid.scored_N):
            raise UserError("data.messages_field: no message of a validation document is of the assistant")
        self.n_valid_documents, self.n_valid_tokens = valid.n_documents, valid.n_tokens
        self.n_valid_windows = len(self.valid_windows)
        # Every token is predicted once, except the first one of all or, with a document mask, of each document.
        unpredicted = valid.n_documents if config.document_mask else 1
        self.bytes_per_token = valid.text_bytes / (self.n_valid_tokens - unpredicted)

    def valid_batches(
        self, *, batch_size: int, max_tokens: int = 0, shard: BatchShard = WHOLE_BATCH
    ) -> "grain.DatasetIterator[Element]":
        """Returns the batches of the validation text in order, the same number of batches in every process.

        The last batch is filled up with padding rows, whose segment ids are 0.

        Args:
          batch_size: B, rows over all processes.
          max_tokens: use only the first windows, which have as many targets, at least one window; 0: the whole text.
          shard: the rows to return.

        Raises:
          UserError: batch_size cannot be divided over the processes, or the windows have no targets but the ends of
            documents.
        """
        n = self._n_evaluated(max_tokens)
        if self.has_scored and not self.evaluated_bytes(max_tokens):
            raise self._no_targets(n, max_tokens)
        padding = padding_row(self.valid_windows[0], self.tokenizer.pad_id)
        rows = grain.MapDataset.source(_Padded(self.valid_windows, n, batch_size, padding))
        return self._read_ahead(Batches(rows, batch_size, shard))

    @property
    def has_scored(self) -> bool:
        """Whether only some tokens are targets; batches then have the array `scored`."""
        return self._valid.scored_N is not None

    def _no_targets(self, n_windows: int, max_tokens: int) -> UserError:
        if n_windows < self.n_valid_windows:
            what = f"window of the validation text has no targets, nor do the {n_windows - 1} after it"
            return UserError(f"eval.max_tokens: is {max_tokens}, but the first {what}; raise it")
        field = "messages_field" if self._config.messages_field else "completion_field"
        return UserError(f"data.{field}: all completions of the validation documents are empty")

    def _n_evaluated(self, max_tokens: int) -> int:
        """The number of windows that `valid_batches` yields."""
        n = self.n_valid_windows
        return min(n, max(self.valid_windows.n_within(max_tokens), 1)) if max_tokens else n

    def target_parts(self, max_tokens: int = 0) -> TextParts:
        """Returns the position and the source of the targets that `valid_batches` yields with the same max_tokens."""
        offsets, ends = self._valid.offsets, [0]
        for _, n_documents in self._names:
            ends.append(ends[-1] + n_documents)
        names = [name for name, _ in self._names]
        sizes = [int(offsets[b] - offsets[a]) for a, b in itertools.pairwise(ends)]
        n = self._n_evaluated(max_tokens)
        sources = list(zip(names, sizes, strict=True))
        return TextParts(self.valid_windows, n, self._config.max_length, sources)

    def with_stride(self, stride: int) -> Self:
        """Returns the same data with validation windows that start `stride` tokens apart, see `PackedWindows`.

        Raises:
          UserError: the stride is not 1 to L.
        """
        length = self._config.max_length
        require(1 <= stride <= length, "stride", f"is {stride}, must be 1 to data.max_length={length}")
        other = copy.copy(self)
        other.valid_windows = self._windows(self._valid, keep_last=True, stride=stride)
        other.n_valid_windows = len(other.valid_windows)
        return other

    def evaluated_bytes(self, max_tokens: int = 0) -> int:
        """Returns the bytes of UTF-8 of the text that `valid_batches` yields with the same max_tokens, of its targets.

        Those of a part of the text follow from the bytes that its tokens stand for. Their sum is scaled to the bytes of
        the whole text, from which it differs if the tokenizer changes the text.
        """
        valid = self._valid
        n = self._n_evaluated(max_tokens)
        targets = valid.tokens_N[: self.valid_windows.end(n)]
        if valid.scored_N is not None:
            targets = targets[valid.scored_N[: len(targets)] > 0]
        elif n == self.n_valid_windows:
            return valid.text_bytes
        sizes_V = self.tokenizer.sizes()
        counts = [np.bincount(tokens, minlength=len(sizes_V)) for tokens in (targets, valid.tokens_N)]
        part, whole = (int(count @ sizes_V) for count in counts)
        return max(round(valid.text_bytes * part / whole), 1) if part else 0

    @property
    def is_small(self) -> bool:
        """Whether the validation text is so short that its loss says little."""
        return self.n_valid_tokens < max(_FEW_WINDOWS * self._config.max_length, _FEW_TOKENS)

    def _describe_targets(self) -> list[str]:
        """Returns a line about the targets, unless all tokens are targets."""
        if not self.has_scored:
            return []
        field = self._config.completion_field
        what = f"field {field} of records" if field else f"the assistant's messages in {self._config.messages_field}"
        return [f"targets     {what}"]

    def _describe_validation(self, origin: str) -> list[str]:
        """Returns lines about the validation text, which is from `origin`, and the tokenizer."""
        settings, valid = self._config.tokenizer, self._valid
        requested = settings.vocab_size
        smaller = not settings.path and self.tokenizer.kind != "bytes" and self.tokenizer.vocab_size < requested
        note = f" ({requested:,} requested, but the text yields no more)" if smaller else ""
        return [
            f"validation  {valid.n_documents:,} documents, {valid.text_bytes:,} bytes, {valid.n_tokens:,} tokens "
            f"({origin})",
            f"tokenizer   {self.tokenizer.kind}, vocabulary {self.tokenizer.vocab_size:,}{note}, "
            f"{self.bytes_per_token:.2f} bytes per token",
        ]

    def _windows(self, shard: Shard, keep_last: bool = False, stride: int | None = None) -> Windows:
        length, pad_id = self._config.max_length, self.tokenizer.pad_id
        if not self._config.pack:
            return DocumentRows(shard, length, pad_id, stride=stride)
        options = {"document_mask": self._config.document_mask, "keep_last": keep_last}
        return PackedWindows(shard, length, pad_id, **options, stride=stride)

    def _read_ahead(self, batches: "grain.MapDataset[Element]") -> "grain.DatasetIterator[Element]":
        num_workers = self._config.num_workers
        return iter(
            batches.to_iter_dataset(grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=2 * num_workers))
        )


class _Padded:
    """The first `n` windows, then padding up to full batches."""

    def __init__(self, windows: Windows, n: int, batch_size: int, padding: Element):
        self._windows, self._n, self._padding = windows, n, padding
        self._n_rows = -(-n // batch_size) * batch_size

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, i: int) -> Element:
        return self._windows[i] if i < self._n else self._padding


class Batches(grain.MapDataset):
    """The rows of each batch that belong to one process; no others are read."""

    def __init__(self, rows: "grain.MapDataset[Element]", batch_size: int, shard: BatchShard):
        super().__init__(rows)
        self._batch_size = batch_size
        self._rows = shard.rows(batch_size).tolist()

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size

    def __getitem__(self, index: int | slice) -> Element:
        if isinstance(index, slice):
            return self.slice(index)
        first = index * self._batch_size
        elements = [self._parent[first + row] for row in self._rows]
        return {name: np.stack([element[name] for element in elements]) for name in elements[0]}
