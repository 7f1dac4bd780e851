"""The training loop: steps, evaluations, checkpoints and records of one run."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from psann_jax.config import Config, require
from psann_jax.config.io import to_dict
from psann_jax.nn.mesh import make_mesh
from psann_jax.plots.loss_curve import plot_loss_curve
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.compilation import Compiled, compile_steps
from psann_jax.train.hardware import device_description, peak_memory_mb
from psann_jax.train.mesh import Share, batch_share, put_batch
from psann_jax.train.metrics import METRICS, MetricsWriter, perplexity, read_metrics
from psann_jax.train.preemption import StopSignals
from psann_jax.train.processes import from_leader, together
from psann_jax.train.profiling import StepTrace
from psann_jax.train.progress import Progress
from psann_jax.train.step import Objective, State, init_state
from psann_jax.train.workdir import SUMMARY, claim
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import read_json, storage_errors, write_json


class Task(Objective, Protocol):
    """What the loop needs of a task, beside its objective."""

    def describe(self) -> dict[str, object]:
        """Facts for the header of a run."""

    def fingerprint(self) -> str:
        """Changes when the data would."""

    def tokenizer_bytes(self) -> bytes | None:
        """The tokenizer file for the checkpoint."""

    def check_mesh(self, mesh: Mesh) -> None:
        """Raises ConfigError if the model cannot be divided over the mesh."""

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch."""

    def train_batches(self, start_step: int, share: Share) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of the batches from a step on, without end."""

    def valid_batches(self, batch_size: int, share: Share) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of the fixed validation batches."""

    def phases(self) -> dict[int, str]:
        """The steps at which the training data change, and what follows; {} if they do not."""

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Evaluation results, "loss" and "ppl" among them, from the sums over all batches."""


def train(config: Config, make_task: Callable[[], Task], workdir: Path, *, profile_steps: str = "") -> dict[str, Any]:
    """Trains a task to config.train.steps, from wherever the workdir's run has got to.

    Args:
      config: the experiment.
      make_task: gives the model, its loss and its data; called once mesh and workdir are known to be good,
        since it may prepare data for minutes.
      workdir: made if missing; all that the run makes goes there.
      profile_steps: "first:last", steps to be traced into workdir/profile.

    Returns:
      The summary of the run so far, as in summary.json; with "stopped" if a signal ended it before its end.

    Raises:
      UserError: the workdir holds another run or cannot be written, or too many updates were not finite.
    """
    trace = StepTrace(profile_steps, workdir / "profile")
    with contextlib.ExitStack() as stack:
        stack.callback(trace.close)
        with together():
            mesh = make_mesh(config.mesh)
            stack.enter_context(claim(workdir, config))
            checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", config.checkpoint))
            task = make_task()
            task.check_mesh(mesh)
        done, damaged = checkpoints.newest_sound()
        for message in damaged:
            _say(message)
        with together():
            _check_resumable(done, checkpoints, task, config, workdir)
        summary = from_leader(read_json(workdir / SUMMARY) if (workdir / SUMMARY).exists() else {})
        if done == config.train.steps == summary.get("steps"):
            _say(f"{workdir}: the run is complete at step {done}; raise train.steps to go on")
            return dict(summary)
        # Before the steps are compiled, which can take minutes: a signal meanwhile acts at the first boundary.
        signals = stack.enter_context(StopSignals())
        return _Run(config, task, mesh, workdir, checkpoints, done or 0, trace, signals).train()


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _check_resumable(done: int | None, checkpoints: Checkpoints, task: Task, config: Config, workdir: Path) -> None:
    """Raises UserError if the run in the workdir, saved after `done` updates, cannot go on with this config."""
    if done is None:
        return
    require(
        done <= config.train.steps,
        "train.steps",
        f"is {config.train.steps}, but the run in {workdir} has done {done} steps",
    )
    saved = checkpoints.metadata(done)["data"]
    if saved != task.fingerprint():
        raise UserError(
            f"{workdir}: data.sources or the tokenizer give another text than the one the run was trained on; "
            "restore it, or choose another --workdir"
        )


@dataclass
class _Clock:
    """Seconds of training proper, without compilation, evaluation and checkpoints."""

    seconds: float = 0.0
    waiting: float = 0.0
    steps: int = 0
    _since: float = field(default_factory=time.perf_counter)

    def start(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Adds the time of the step that has just ended, and returns it."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.seconds += seconds
        self.steps += 1
        return seconds


class _Run:
    """One process's part in a run, from its last checkpoint to its end or to a signal."""

    def __init__(
        self,
        config: Config,
        task: Task,
        mesh: Mesh,
        workdir: Path,
        checkpoints: Checkpoints,
        done: int,
        trace: StepTrace,
        signals: StopSignals,
    ) -> None:
        self.trace, self.signals = trace, signals
        self.config, self.task, self.mesh, self.workdir, self.checkpoints = config, task, mesh, workdir, checkpoints
        self.step = self.saved = done
        with together():
            self.compiled: Compiled = compile_steps(task, config, self.mesh)
        self.share = batch_share(self.compiled.batch)
        leads = jax.process_index() == 0
        self.writer = MetricsWriter(workdir, resume_step=done, enabled=leads)
        self.progress = Progress(config.train.steps, start=done, log_every=config.train.log_every, enabled=leads)
        self.clock = _Clock()
        self.statistics: dict[str, Any] = {}  # of the last evaluation
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        rows = read_metrics(workdir / METRICS) if leads else []
        self.evaluations = from_leader([row for row in rows if row["kind"] == "eval" and row["step"] <= done])

    def train(self) -> dict[str, Any]:
        """The whole run; see `train`."""
        with self.writer, self.progress, jax.set_mesh(self.mesh):
            self._header()
            self.state = self._restore_or_init()
            stopped = not (self._evaluate_if_due() and self._steps())
            self._save(final=True)
            if stopped:
                self.progress.message(
                    f"stopped by {self.signals.received or 'another process'} at step {self.step}, all saved; "
                    "the same command goes on from here"
                )
            return self._finish(stopped)

    def _header(self) -> None:
        config, compiled = self.config, self.compiled
        facts: dict[str, object] = {
            "workdir": self.workdir,
            "model": f"{config.model.base}, {self.task.network.n_params:,} parameters",
            **self.task.describe(),
            "device": device_description(),
            "mesh": " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items()),
            "compiled": f"in {compiled.seconds:.1f} s"
            + (f"; an earlier start saved {compiled.saved_seconds:.1f} s" if compiled.saved_seconds > 0 else ""),
            "memory": f"{compiled.memory_mb:,.0f} MB per device estimated for a training step",
        }
        if self.step:
            facts["resumed"] = f"at step {self.step}"
        self.progress.header(facts)

    def _restore_or_init(self) -> State:
        if self.step:
            return self.checkpoints.restore(self.step, self.compiled.spec.with_shardings())
        return init_state(self.task.network, self.config.train, self.compiled.spec, self.config.seed)

    # --- steps ----------------------------------------------------------------------------------------

    def _steps(self) -> bool:
        """Takes the remaining steps; False if a signal ended them early."""
        batches = self.task.train_batches(self.step, self.share)
        self.clock.start()
        while self.step < self.config.train.steps:
            if self.signals.should_stop(self.step):
                self._report_pending()
                return False
            self.trace.before(self.step + 1)
            began = time.perf_counter()
            batch = put_batch(next(batches), self.compiled.batch)
            self.clock.waiting += time.perf_counter() - began
            self.state, metrics = self.compiled.train_step(self.state, batch)
            self.step += 1
            self.trace.after(self.step, metrics)
            # Reading the metrics of the step before leaves the device busy with this one.
            self._report_pending()
            self.pending = (self.step, metrics)
            if not self._boundary():
                return False
        return True

    def _boundary(self) -> bool:
        """Checkpoint and evaluation after a step, where they are due; False if a signal ended them."""
        due_save = self.step % self.config.checkpoint.every == 0 or self.step == self.config.train.steps
        if not (due_save or self._evaluation_due()):
            return True
        self._report_pending()
        if due_save:  # before the evaluation, so that nothing is lost if that fails
            self._save()
        finished = self._evaluate_if_due()
        self.clock.start()
        return finished

    def _report_pending(self) -> None:
        """Records the metrics of the last dispatched step, waiting for it if need be."""
        if self.pending is None:
            return
        step, arrays = self.pending
        self.pending = None
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        seconds = self.clock.lap()
        metrics["ppl"] = perplexity(metrics["loss"])
        metrics["tokens_per_s"] = self.config.train.batch_tokens / seconds
        metrics["data_wait"] = self.clock.waiting / self.clock.seconds
        shown = ("loss", "ppl", "ppl_avg25", "lr", "tokens_per_s")
        self.progress.update(step, {name: metrics[name] for name in shown})
        if step % self.config.train.log_every == 0 or step in (1, self.config.train.steps) or metrics["bad_steps"]:
            self.writer.write("train", step, metrics)
        if metrics["bad_steps"] >= self.config.train.max_bad_steps:
            self._save(final=True)
            raise UserError(
                f"train.max_bad_steps: {metrics['bad_steps']:.0f} updates in a row were not finite, the last at step "
                f"{step}; the state before them is saved in {self.checkpoints.directory}; lower train.lr"
            )

    # --- evaluation and checkpoints -------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        every = self.config.eval.every
        at_step = self.step in (0, self.config.train.steps) or (every > 0 and self.step % every == 0)
        return at_step and not any(row["step"] == self.step for row in self.evaluations)

    def _evaluate_if_due(self) -> bool:
        """Evaluates after the current step if that is due and not yet done; False if a signal ended it."""
        if not self._evaluation_due():
            return True
        result = self._evaluate()
        if result is None:
            return False
        best = min((row["loss"] for row in self.evaluations), default=float("inf"))
        self.evaluations.append({"step": self.step, **result})
        self.writer.write("eval", self.step, result | self.statistics)
        self.progress.evaluation(self.step, result)
        if self.step and (self.saved == self.step or result["loss"] < best):
            self._save()
        return True

    def _evaluate(self) -> dict[str, float] | None:
        """Results over the validation set, of averaged weights too; None if a signal ended it."""
        weights = {name: self.state[name] for name in ("params", "ema_params") if name in self.state}
        totals: dict[str, dict[str, float]] = {name: {} for name in weights}
        for batch in self.task.valid_batches(self.compiled.eval_batch_size, self.share):
            if self.signals.should_stop(self.step):
                return None
            arrays = put_batch(batch, self.compiled.batch)
            if self.compiled.statistics_step is not None and not totals["params"]:
                self.statistics = jax.device_get(self.compiled.statistics_step(self.state["params"], arrays))
            for kind, params in weights.items():
                for name, value in jax.device_get(self.compiled.eval_step(params, arrays)).items():
                    totals[kind][name] = totals[kind].get(name, 0.0) + float(value)
        results = {kind: self.task.summarise(sums) for kind, sums in totals.items()}
        ema_params = results.get("ema_params", {})
        return results["params"] | {f"ema_{name}": value for name, value in ema_params.items() if name != "tokens"}

    def _save(self, *, final: bool = False) -> None:
        evaluated = [row for row in self.evaluations if row["step"] == self.step]
        self.saved = self.step
        self.checkpoints.save(
            self.step,
            self.state,
            metadata={"config": to_dict(self.config), "data": self.task.fingerprint()},
            metrics={"val_loss": evaluated[-1]["loss"]} if evaluated else None,
            tokenizer=self.task.tokenizer_bytes(),
            final=final,
        )

    # --- the end --------------------------------------------------------------------------------------

    def _finish(self, stopped: bool) -> dict[str, Any]:
        recent = np.asarray(jax.device_get(self.state["recent_loss"]))
        last = self.evaluations[-1] if self.evaluations else {}
        tokens = self.step * self.config.train.batch_tokens
        rate = self.clock.steps * self.config.train.batch_tokens / self.clock.seconds if self.clock.steps else 0.0
        summary: dict[str, Any] = {
            "steps": self.step,
            "tokens": tokens,
            "train_loss": float(np.nanmean(recent)) if np.isfinite(recent).any() else None,
            "val_loss": last.get("loss"),
            "val_ppl": last.get("ppl"),
            "val_accuracy": last.get("accuracy"),
            "val_bits_per_byte": last.get("bits_per_byte"),
            **{f"val_{name}": value for name, value in last.items() if name.startswith(("ema_", "solved"))},
            "tokens_per_s": rate,
            "data_wait": self.clock.waiting / self.clock.seconds if self.clock.steps else 0.0,
            "compile_s": self.compiled.seconds,
            "peak_memory_mb": peak_memory_mb(),
            "n_params": self.task.network.n_params,
        }
        if jax.process_index() == 0:
            with storage_errors(self.workdir):
                plot_loss_curve(
                    read_metrics(self.workdir / METRICS),
                    self.workdir / "loss_curve.png",
                    self.workdir.name,
                    {step: name for step, name in self.task.phases().items() if step < self.step},
                )
        if stopped:
            return {**summary, "stopped": True}
        if jax.process_index() == 0:
            write_json(self.workdir / SUMMARY, summary)
        return summary
