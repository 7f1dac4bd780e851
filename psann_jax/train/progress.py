"""Progress of a run on the terminal: a header, a progress bar or plain lines, evaluations."""

import contextlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from psann_jax.utils.progress_stream import bar_class, progress_stream, updates_in_place

# Slower updates are announced; faster ones soon show in the progress display.
_SLOW_UPDATE_S = 2.0
# The widget of a notebook replaces {bar} only, without a width.
_TERMINAL_BAR = "{percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
_NOTEBOOK_BAR = _TERMINAL_BAR.replace("{bar:20}", "{bar}")


class Progress:
    """Shows a run on stderr: a progress bar on a terminal, otherwise a line every `log_every` steps.

    In a notebook, which shows stderr as errors, it shows tqdm's bar for notebooks, or without ipywidgets one on stdout.

    A stream that cannot be written, such as a terminal that has been closed, does not stop the run.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        log_every: int = 10,
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        """Stores the settings; shows nothing yet.

        Args:
          total: updates in the whole run.
          start: updates done before the run was resumed.
          log_every: steps between plain lines.
          enabled: False in all processes but one; then nothing is shown.
          stream: where to write; None is stderr, or stdout in a notebook.
        """
        self._total = total
        self._start = start
        self._log_every = log_every
        self._stream = stream or progress_stream()
        self._has_bar = updates_in_place(self._stream)
        self._enabled = enabled and self._stream is not None  # Python has no stderr if it was closed at the start
        self._bar: tqdm | None = None
        self._step = start
        self._first_time: float | None = None
        self._first_step = start

    def header(self, facts: Mapping[str, object]) -> None:
        """Shows facts about the run, one aligned ``name  value`` per line."""
        width = max((len(name) for name in facts), default=0)
        for name, value in facts.items():
            self.message(f"{name:<{width}}  {value}")

    def message(self, text: str) -> None:
        """Shows a separate line, above the bar if there is one."""
        if not self._enabled:
            return
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.write(text, file=self._stream)
            else:
                print(text, file=self._stream, flush=True)

    def duration(self, seconds_per_update: float, *, measured: bool) -> None:
        """Shows how long an update and the whole rest of the run take, if an update takes long.

        Args:
          seconds_per_update: the time of one update.
          measured: False for an estimate before the first update.
        """
        if seconds_per_update < _SLOW_UPDATE_S:
            return
        updates = self._total - self._start
        minutes = max(round(updates * seconds_per_update / 60), 1)
        origin = "" if measured else ", estimated from the evaluation"
        self.message(
            f"about {seconds_per_update:.0f} s per update, {minutes:,} minutes in all for {updates:,} updates{origin}"
        )

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows that `step` updates are done.

        Args:
          step: number of updates done.
          values: metrics such as loss, ppl, lr and tokens_per_s, in the order to show them.
        """
        if not self._enabled:
            return
        if self._first_time is None:  # the ETA leaves out the first step, which is often slower
            self._first_time, self._first_step = time.monotonic(), step
        if self._has_bar:
            self._advance_bar(step, values)
        elif step % self._log_every == 0 or step == self._total:
            self.message(f"step {step}/{self._total}  {_format(values)}  ETA {self._eta(step)}")

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the result of an evaluation after `step` updates."""
        self.message(f"eval at step {step}  {_format(values)}")

    def close(self) -> None:
        """Ends the bar, which stays visible."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advance_bar(self, step: int, values: Mapping[str, float]) -> None:
        if self._bar is None:
            assert self._stream is not None
            style = _TERMINAL_BAR if self._stream.isatty() else _NOTEBOOK_BAR
            self._bar = bar_class()(
                total=self._total, initial=self._start, bar_format=style, dynamic_ncols=True, file=self._stream
            )
        self._bar.set_postfix_str(_format(values), refresh=False)
        self._bar.update(step - self._step)
        self._step = step

    def _eta(self, step: int) -> str:
        if self._first_time is None or step <= self._first_step:
            return "?"
        seconds_per_step = (time.monotonic() - self._first_time) / (step - self._first_step)
        return str(tqdm.format_interval(seconds_per_step * (self._total - step)))


def _format(values: Mapping[str, float]) -> str:
    parts = []
    for name, value in values.items():
        if not name.endswith(("_low", "_high")):
            interval = (
                f" ({values[f'{name}_low']:.3g} to {values[f'{name}_high']:.3g})" if f"{name}_low" in values else ""
            )
            parts.append(_format_one(name, float(value)) + interval)
    return "  ".join(parts)


def _format_one(name: str, value: float) -> str:
    if name == "tokens_per_s":
        return f"{value:,.0f} tokens/s"
    if name == "lr":
        return f"lr {value:.2e}"
    if "ppl" in name and value < 1e7:
        return f"{name} {value:,.1f}"
    return f"{name} {value:.4g}"
