"""Generates the texts of all requests to one model, in a thread of its own."""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Sequence

from psann_jax.sample.sampler import MAX_STEPS
from psann_jax.sample.slots import Slots
from psann_jax.serve.choice import Choice
from psann_jax.utils.errors import one_line

_ADVANCE_S = 0.05  # between two looks at the queue and two pieces of streamed text


class QueueFullError(Exception):
    """There is no place in the queue."""


class Engine:
    """Slots of a batch, a queue before them, and the thread that moves texts from one to the other.

    A text begins as soon as a slot is free, in the order of the queue, whatever the other slots do.

    Attributes:
      slots: the batch; only the engine's thread uses it after `start`.
      max_waiting: places in the queue.
    """

    def __init__(self, slots: Slots, max_waiting: int) -> None:
        """Compiles nothing; see `start`."""
        self.slots, self.max_waiting = slots, max_waiting
        self._waiting: deque[Choice] = deque()
        self._active: dict[int, Choice] = {}  # by slot
        self._changed = threading.Condition()
        self._closed, self._steps = False, 1
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Compiles all programs, which takes seconds, and starts the thread."""
        self.slots.warm_up()
        self._thread.start()

    def submit(self, choices: Sequence[Choice]) -> None:
        """Puts texts at the end of the queue, all or none.

        Raises:
          QueueFullError: the queue has not enough places for those that no slot is free for.
          RuntimeError: the thread has ended.
        """
        with self._changed:
            if not self.is_running:
                raise RuntimeError("the engine has ended")
            free = len(self.slots.rows) - len(self._active)
            if len(self._waiting) + len(choices) > free + self.max_waiting:
                raise QueueFullError
            self._waiting.extend(choices)
            self._changed.notify()

    def cancel(self, choices: Sequence[Choice]) -> None:
        """Ends texts that nobody waits for, without a further update."""
        with self._changed:
            for choice in choices:
                choice.cancelled = True
            self._waiting = deque(choice for choice in self._waiting if not choice.cancelled)

    @property
    def is_running(self) -> bool:
        """Whether the thread runs; it ends with `close`, or if the device does not recover from an error."""
        return self._thread.is_alive()

    @property
    def is_idle(self) -> bool:
        """Whether no text is in progress or waiting."""
        with self._changed:
            return not (self._waiting or self._active)

    def close(self, reason: str) -> None:
        """Ends the thread; texts that are not finished fail with the reason."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._fail((*self._active.values(), *self._waiting), reason)

    def _run(self) -> None:
        try:
            while self._admit():
                try:
                    self._advance()
                except Exception as error:  # the server goes on with the next requests
                    traceback.print_exc(file=sys.stderr)
                    failed, self._active = list(self._active.values()), {}
                    self._fail(failed, f"unexpected {type(error).__name__}: {one_line(error)}")
                    self.slots.reset()
        finally:
            if not self._closed:  # the device does not work any more
                self._fail(self._waiting, "the engine has ended")

    def _admit(self) -> bool:
        """Waits until there is something to do and assigns free slots; returns False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._active)
            for slot, choice in list(self._active.items()):
                if choice.cancelled:
                    self._release(slot)
            for slot in self.slots.free:
                if self._waiting and slot not in self._active:
                    self._active[slot] = self._waiting.popleft()
            return not self._closed

    def _advance(self) -> None:
        """Begins texts, generates the next tokens of all and delivers them."""
        for slot, choice in self._active.items():
            if self.slots.rows[slot] is None:
                self.slots.begin(slot, choice.row)
        began = time.perf_counter()
        self.slots.advance(self._steps)
        seconds = time.perf_counter() - began
        if seconds < _ADVANCE_S / 2:
            self._steps = min(2 * self._steps, MAX_STEPS)
        elif seconds > _ADVANCE_S:
            self._steps = max(self._steps // 2, 1)
        for slot, choice in list(self._active.items()):
            if choice.row.finish == "error":
                choice.fail(choice.row.error)
            else:
                choice.read()
            if choice.row.finish is not None:
                with self._changed:
                    self._release(slot)

    def _release(self, slot: int) -> None:
        del self._active[slot]
        self.slots.release(slot)

    @staticmethod
    def _fail(choices: Iterable[Choice], error: str) -> None:
        for choice in choices:
            choice.fail(error)
