"""One text of an answer: a row of the batch, read as text while it grows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from psann_jax.data.tokenizer import Tokenizer
from psann_jax.sample.slots import SlotRow
from psann_jax.sample.text import Reader


@dataclass
class Update:
    """What a text has got since its last update.

    Attributes:
      text: the next piece; "" if it may still change.
      n_tokens: number of tokens generated so far, with eos.
      tokens, logprobs, top, offsets: of the tokens that this piece completes, if log-probabilities are wanted: ids;
        log-probabilities; alternatives, see `SlotRow`; and where each begins in the whole text.
      finish: why the text ended, see `Row`; "error": see `error`; None while it is in progress.
      error: what ended it early, otherwise "".
    """

    text: str
    n_tokens: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str = ""


class Choice:
    """A text to generate, with the function that gets its updates.

    Attributes:
      row: its prompt and settings, and what is generated.
      cancelled: whether nobody waits for it any more.
    """

    def __init__(
        self,
        row: SlotRow,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        explained: bool,
        ending: str | None,
        deliver: Callable[[Update], None],
    ) -> None:
        """Prepares the reading of a row.

        Args:
          row: not begun.
          tokenizer: of the network.
          stop: strings that end the text.
          explained: whether the updates have tokens and log-probabilities.
          ending: of a message: what it loses at its end, with the tokens of it and eos, if the model ends it; strings
            in `stop` begin with it. None: the text is no message.
          deliver: called by the engine's thread with each update, in order; the last one has a finish.
        """
        self.row, self.cancelled = row, False
        self._explained, self._ending, self._deliver = explained, ending, deliver
        self._pieces: list[str] = []
        self._reader = Reader(tokenizer, row, stop, self._pieces.append)
        self._shown, self._n_explained = 0, 0  # characters and tokens delivered

    def read(self) -> None:
        """Reads the new tokens and delivers an update, if there is anything new."""
        stopped = self._reader.read()
        if stopped is not None:
            self.row.stop(stopped)
        text = "".join(self._pieces)
        self._pieces.clear()
        if self.row.finish == "eos" and self._ending:  # not delivered yet, because a stop string could have followed
            text = text.removesuffix(self._ending)
        self._shown += len(text)
        update = Update(text, len(self.row.tokens), finish=self.row.finish)
        if self._explained:
            self._explain(update)
        if update.text or update.tokens or update.finish:
            self._deliver(update)

    def fail(self, error: str) -> None:
        """Delivers an error as the last update."""
        self.row.finish = "error"
        self._deliver(Update("", len(self.row.tokens), finish="error", error=error))

    def _explain(self, update: Update) -> None:
        """Adds the tokens whose text has been delivered; a stop string may cut the text of the last one."""
        row, first = self.row, self._n_explained
        is_cut = row.finish == "stop" or (row.finish == "eos" and self._ending is not None)
        for i in range(first, len(row.tokens)):
            start = self._reader.start(i)
            if is_cut:
                is_delivered = start < self._shown
            else:
                is_delivered = row.finish is not None or self._reader.end(i) <= self._shown
            if not is_delivered:
                break
            update.offsets.append(start)
        self._n_explained = last = first + len(update.offsets)
        update.tokens, update.logprobs = row.tokens[first:last], row.logprobs[first:last]
        update.top = row.top[first:last] if row.n_alternatives else [[] for _ in range(last - first)]
