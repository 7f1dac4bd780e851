"""Windows of tokens from text that is read while a run trains.

A stream has no end: after each pass over its parts it begins the next, with the parts in another order. Its state is
the place of a token in the text, four numbers, from which it can be read again.
"""

import dataclasses
import hashlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np

from psann_jax.data.encoding import encode_documents
from psann_jax.data.shards import Shard
from psann_jax.data.stream_sources import StreamPart
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.data.windows import Element, PackedWindows
from psann_jax.utils.errors import DataError, UserError

# Characters that are encoded together: enough to occupy all cores, and little compared to the shuffle buffer.
_BATCH_CHARACTERS = 1 << 19
_MAX_EMPTY_PASSES = 20  # more than one, as one of several readers may get only empty parts in a pass


@dataclass(frozen=True)
class Place:
    """The place of a token in a stream.

    Attributes:
      passes: passes over the text that are complete.
      part: index in the order of the parts of this pass.
      document: index in the part.
      token: index in the document.
    """

    passes: int = 0
    part: int = 0
    document: int = 0
    token: int = 0


class PartReader:
    """The documents of the parts of a stream that one of several readers reads, without end.

    In each pass, the parts of all readers are put in a new random order, of which each reader takes its fraction. So
    within a pass, no two readers read the same part.
    """

    def __init__(self, parts: Sequence[StreamPart], seed: str, reader: int, n_readers: int):
        """Reads nothing yet.

        Args:
          parts: of all readers, at least as many as there are readers.
          seed: of the order of the parts, another one for each stream of a run.
          reader: index of this reader.
          n_readers: number of readers.
        """
        self._parts, self._seed = parts, seed
        self._reader, self._n_readers = reader, n_readers
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends the reading in another thread, which gets a DataError, with the next document or failed request."""
        self._stopped.set()
        for part in self._parts:
            part.stop()

    def order(self, passes: int) -> list[StreamPart]:
        """Returns the parts that this reader reads after so many passes, in order."""

        def key(i: int) -> bytes:  # NumPy does not promise the same order in all its versions
            return hashlib.sha256(f"{self._seed} {passes} {i}".encode()).digest()

        order = sorted(range(len(self._parts)), key=key)
        return [self._parts[i] for i in order[self._reader :: self._n_readers]]

    def documents(self, start: Place) -> Iterator[tuple[Place, str]]:
        """Yields documents and the places of their first tokens, from the document of `start` on.

        Raises:
          DataError: the text cannot be read, has changed, or is empty.
        """
        try:
            yield from self._documents(start)
        except DataError:
            raise
        except UserError as error:
            raise DataError(str(error)) from error

    def _documents(self, start: Place) -> Iterator[tuple[Place, str]]:
        n_empty = 0  # passes without a document, one after another
        for passes in itertools.count(start.passes):
            order, is_empty = self.order(passes), not (start.part or start.document)
            for k in range(start.part, len(order)):
                is_missing = start.document > 0 or start.token > 0  # the document that `start` is in
                for i, text in itertools.islice(enumerate(order[k].documents()), start.document, None):
                    if self._stopped.is_set():
                        raise UserError("data.stream: the run has ended")
                    yield Place(passes, k, i), text
                    is_empty = is_missing = False
                if is_missing:
                    raise changed(order[k])
                start = Place()
            start, n_empty = Place(), n_empty + 1 if is_empty else 0
            if n_empty == _MAX_EMPTY_PASSES:
                raise UserError(f"{self._parts[0].name}: has no text, only blank lines, and so have all other parts")


def changed(part: StreamPart) -> UserError:
    """Returns the error about a part that lacks what was there before."""
    return UserError(f"{part.name}: has changed since the run read it; restore it, or start anew in another --workdir")


class WindowFormat(NamedTuple):
    """How documents become windows, see `PackedWindows`.

    Attributes:
      tokenizer: encodes the documents.
      length: L.
      document_mask: False makes a window one segment.
      has_scored: whether windows say which tokens are targets.
    """

    tokenizer: Tokenizer
    length: int
    document_mask: bool
    has_scored: bool


class StreamWindows(grain.IterDataset[Element]):
    """The windows of a stream in the order of its text: those of `PackedWindows`, but without end."""

    def __init__(self, reader: PartReader, form: WindowFormat):
        """Reads nothing yet."""
        super().__init__()
        self._reader, self._form = reader, form

    def __iter__(self) -> "grain.DatasetIterator[Element]":
        return _Iterator(self._reader, self._form)


class _Document(NamedTuple):
    """A document as tokens, or the end of one.

    Attributes:
      place: of its first token that is here.
      ids_N: token ids, int32.
      scored_N: whether each is a target, uint8.
    """

    place: Place
    ids_N: np.ndarray
    scored_N: np.ndarray

    def after(self, n: int) -> "_Document":
        """Returns it without its first `n` tokens."""
        place = dataclasses.replace(self.place, token=self.place.token + n)
        return _Document(place, self.ids_N[n:], self.scored_N[n:])


class _Iterator(grain.DatasetIterator[Element]):
    """Holds the tokens of some documents at a time, and cuts them into windows."""

    def __init__(self, reader: PartReader, form: WindowFormat):
        super().__init__()
        self._reader, self._form = reader, form
        self.set_state(dataclasses.asdict(Place()))

    def get_state(self) -> dict[str, Any]:
        """Returns the place of the first token of the next window."""
        if not self._held:
            return dataclasses.asdict(self._start)
        i, n = self._first_unused()
        place = self._held[i].place
        return dataclasses.asdict(dataclasses.replace(place, token=place.token + n))

    def set_state(self, state: dict[str, Any]) -> None:
        """Makes the token at a place the first of the next window."""
        self._start = Place(**state)
        self._documents = self._reader.documents(self._start)
        self._held: list[_Document] = []
        self._offsets = np.zeros(1, np.int64)  # of the documents that are held
        self._windows: PackedWindows | None = None
        self._next = 0  # index of the next of these windows

    def __next__(self) -> Element:
        while self._windows is None or self._next == len(self._windows):
            self._read()
        element = self._windows[self._next]
        self._next += 1
        return element

    def _first_unused(self) -> tuple[int, int]:
        """Returns the index of the first document with tokens for the next window, and its number of tokens before."""
        token = self._next * self._form.length
        i = int(np.searchsorted(self._offsets, token, "right")) - 1
        return i, token - int(self._offsets[i])

    def _read(self) -> None:
        """Replaces the documents that are held by the rest of them, which is in no window yet, and the next ones."""
        documents = self._encode()
        if self._held:
            i, n = self._first_unused()
            self._held = [self._held[i].after(n), *self._held[i + 1 :], *documents]
        else:
            if len(documents[0].ids_N) <= self._start.token:
                raise DataError(str(changed(self._reader.order(self._start.passes)[self._start.part])))
            self._held = [documents[0].after(self._start.token), *documents[1:]]
        self._offsets, self._next = np.cumsum([0, *(len(document.ids_N) for document in self._held)]), 0
        ids_N, scored_N = (np.concatenate([document[k] for document in self._held]) for k in (1, 2))
        shard = Shard(ids_N, self._offsets, 0, scored_N if self._form.has_scored else None)
        options = {"document_mask": self._form.document_mask}
        self._windows = PackedWindows(shard, self._form.length, self._form.tokenizer.pad_id, **options)

    def _encode(self) -> list[_Document]:
        """Returns the next documents."""
        found: list[tuple[Place, str]] = []
        n_characters = 0
        while n_characters < _BATCH_CHARACTERS:
            found.append(next(self._documents))
            n_characters += len(found[-1][1])
        documents = []
        encoded = encode_documents([text for _, text in found], self._form.tokenizer)
        for (place, _), (ids, scored) in zip(found, encoded, strict=True):
            scored_N = np.ones(len(ids), np.uint8) if scored is None else np.array(scored, np.uint8)
            documents.append(_Document(place, np.array(ids, np.int32), scored_N))
        return documents
