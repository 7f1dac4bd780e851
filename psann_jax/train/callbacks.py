"""Callbacks: code of a user that the training loop calls."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from psann_jax.config import Config, require


class Callback:
    """Base class of callbacks; its methods do nothing.

    With several processes, only the first one calls callbacks. A method must not change what it is given, and must not
    run JAX programs over the devices of several processes. An exception in it ends the run with its state saved.

    Attributes:
      stop_training: set it to True to end the run at the next step boundary, with its state saved, as a signal does.
        Steps are reported while the device computes the next one, so that one may still be taken. A new run resets it.
    """

    stop_training: bool = False

    def on_train_begin(self, config: Config, step: int) -> None:
        """Called before the first update and evaluation.

        Args:
          config: the settings of the run.
          step: number of updates done before, not 0 if the run resumes.
        """

    def on_step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after every update.

        Args:
          step: number of updates done.
          metrics: loss, ppl, lr, grad_norm and so on, as in the rows of metrics.jsonl.
        """

    def on_evaluate_end(self, step: int, results: Mapping[str, float]) -> None:
        """Called after every evaluation.

        Args:
          step: number of updates done.
          results: loss, ppl, accuracy and so on over the validation set.
        """

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Called when a checkpoint is being written; it is written in the background.

        Args:
          step: number of updates done.
          path: directory of the checkpoint; `on_train_end` finds the last one complete.
        """

    def on_train_end(self, summary: Mapping[str, Any]) -> None:
        """Called at the end, also of a run that was stopped; not after an error.

        Args:
          summary: results as in summary.json; with "stopped": True if the run is not complete.
        """


class Callbacks:
    """The callbacks of a run, called one after the other.

    An exception in one of them asks for a stop, and no callback is called after it; `raise_error` raises it.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        """Checks the callbacks.

        Raises:
          ConfigError: they are not a list of objects of classes derived from `Callback`.
        """
        is_list = isinstance(callbacks, list | tuple)
        require(is_list, "callbacks", f"is of type {type(callbacks).__name__}, must be a list of callbacks")
        self._callbacks = tuple(callbacks)
        for i, callback in enumerate(self._callbacks):
            kind = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            fix = f"is a class; use {kind}()" if isinstance(callback, type) else "must be derived from Callback"
            require(isinstance(callback, Callback), f"callbacks[{i}]", f"is {kind}, {fix}")
        self._error: BaseException | None = None
        self._ask_to_stop: Callable[[str], None] | None = None  # None once it has been called

    def begin(self, config: Config, step: int, stop: Callable[[str], None]) -> None:
        """Calls `on_train_begin`.

        Args:
          config: the settings of the run.
          step: number of updates done.
          stop: ends the run at the next step boundary; its argument says what asked for it.
        """
        self._ask_to_stop, self._error = stop, None
        for callback in self._callbacks:
            callback.stop_training = False
        self.call("on_train_begin", config, step)

    def call(self, method: str, *arguments: Any) -> None:
        """Calls a method of all callbacks."""
        for callback in self._callbacks:
            if self._error is not None:
                return
            name = type(callback).__name__
            try:
                getattr(callback, method)(*arguments)
            except BaseException as error:  # also of sys.exit, which must not lose the state
                error.add_note(f"raised by {name}.{method}; the state of the run is saved")
                self._error = error
                self._stop(f"{type(error).__name__} in {name}.{method}")
            else:
                if callback.stop_training:
                    self._stop(f"callback {name}")

    def _stop(self, source: str) -> None:
        if self._ask_to_stop is not None:
            self._ask_to_stop(source)
        self._ask_to_stop = None

    def raise_error(self) -> None:
        """Raises the exception of a callback again, if there was one."""
        if self._error is not None:
            raise self._error
