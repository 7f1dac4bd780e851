"""The training loop: steps, evaluations, checkpoints and metrics of one run."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from psann_jax.config import Config
from psann_jax.config.io import to_dict
from psann_jax.models.network import Params
from psann_jax.nn.mesh import make_mesh
from psann_jax.train.callbacks import Callbacks
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.common_end import before_exit
from psann_jax.train.compilation import Compiled, compile_steps
from psann_jax.train.evaluation import EvaluationSums
from psann_jax.train.hardware import device_description, peak_memory_mb
from psann_jax.train.loggers import Loggers, check_loggers
from psann_jax.train.mesh import batch_sharding, local_batch_shard, put_batch
from psann_jax.train.metrics import METRICS, MetricsWriter, mean_speed, perplexity, read_metrics
from psann_jax.train.micro_batches import waits_for_each
from psann_jax.train.preemption import StoppedError, StopSignals
from psann_jax.train.processes import broadcast_from_leader, raise_together
from psann_jax.train.profiling import StepTrace
from psann_jax.train.progress import Progress
from psann_jax.train.reports import Reports
from psann_jax.train.resuming import StreamState, check_same_data, prepare_resuming
from psann_jax.train.start import ReadWeights, StartingWeights, origin_of, starting_weights
from psann_jax.train.step import init_state
from psann_jax.train.step_timer import StepTimer
from psann_jax.train.task import Task
from psann_jax.train.update import State
from psann_jax.train.workdir import CHECKPOINTS, SUMMARY, lock, read_summary, write_config
from psann_jax.utils.errors import DataError, UserError
from psann_jax.utils.files import write_json


def train(
    config: Config,
    make_task: Callable[[], Task],
    workdir: Path,
    *,
    initial_params: Params | ReadWeights | None = None,
    profile_steps: str = "",
    on_results: Callable[[], None] = lambda: None,
    callbacks: Callbacks | None = None,
) -> dict[str, Any]:
    """Trains a task up to config.train.steps, resuming from the last checkpoint in the workdir if there is one.

    Args:
      config: the experiment.
      make_task: returns the model, its loss and its data. It is called after mesh and workdir have been checked,
        because it may prepare data for minutes.
      workdir: directory for all files of the run; created if missing.
      initial_params: of a new run, or a function that reads them (`ReadWeights`); None draws them from config.seed.
      profile_steps: "FIRST:LAST", steps to trace into workdir/profile.
      on_results: called by process 0 after evaluations and checkpoints, when new rows are in metrics.jsonl.
      callbacks: called by process 0. An exception in one of them stops the run as a signal does; raise it with their
        `raise_error`.

    Returns:
      The summary of the run so far, as in summary.json; with "stopped": True if a signal or a callback ended it
      early.

    Raises:
      UserError: the workdir holds another run, which may be one from other `initial_params`, or cannot be written;
        `initial_params` do not fit the network; or too many updates in a row were not finite.
    """
    trace = StepTrace(profile_steps, workdir / "profile")
    is_leader = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        stack.callback(trace.close)
        with raise_together():
            if is_leader:
                check_loggers(config)
            mesh = make_mesh(config.mesh)
            stack.enter_context(lock(workdir, config))
            checkpoints = stack.enter_context(Checkpoints(workdir / CHECKPOINTS, config.checkpoint))
            stack.enter_context(before_exit(checkpoints.settle))
            if is_leader:  # the process with the lock, and before any other looks at the directory
                for message in checkpoints.clear_partial():
                    _log(message)
            task = make_task()
            task.check_mesh(mesh)
            if (stream := task.stream()) is not None:
                stream.check_shard(local_batch_shard(batch_sharding(mesh)))
        saved_step, damaged = checkpoints.newest_intact()
        for message in damaged:
            _log(message)
        fingerprint, given = broadcast_from_leader(task.fingerprint()), origin_of(initial_params)
        with raise_together():
            check_same_data(task, config, fingerprint)
            origin = prepare_resuming(saved_step, checkpoints, task, config, workdir, given)
        summary = broadcast_from_leader(read_summary(workdir) if is_leader else {})
        if saved_step == config.train.steps == summary.get("steps"):
            _log(f"{workdir}: the run is complete at step {saved_step}; raise train.steps to continue it")
            return dict(summary)
        trace.check_steps(saved_step or 0, config.train.steps)
        start = starting_weights(initial_params, task.network, mesh) if saved_step is None else StartingWeights()
        progress = stack.enter_context(
            Progress(config.train.steps, start=saved_step or 0, log_every=config.train.log_every, enabled=is_leader)
        )
        # Installed before compilation, which can take minutes, so that a signal then acts at the first step boundary.
        signals = stack.enter_context(StopSignals())
        signals.waiting_for = "the compilation"
        progress.message("compiling ...")
        with raise_together():
            compiled = compile_steps(task, config, mesh)
        reports = Reports(
            progress,
            Callbacks() if callbacks is None or not is_leader else callbacks,
            on_results if is_leader else lambda: None,
            # -1: rows of an earlier start without a checkpoint go.
            MetricsWriter(workdir, resume_step=-1 if saved_step is None else saved_step, enabled=is_leader),
            Loggers(progress.message),
            workdir,
        )
        outputs = _Outputs(workdir, checkpoints, reports, trace)
        return _Run(config, task, mesh, outputs, saved_step, compiled, signals, start, origin).train()


def _log(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


@dataclass(frozen=True)
class _Outputs:
    """Where the results of a run go; see `train`."""

    workdir: Path
    checkpoints: Checkpoints
    reports: Reports
    trace: StepTrace


@dataclass
class _Run:
    """One process's part in a run, from its last checkpoint to its end or to a signal."""

    config: Config
    task: Task
    mesh: Mesh
    outputs: _Outputs
    resumed_from: int | None
    compiled: Compiled
    signals: StopSignals
    start: StartingWeights
    origin: Mapping[str, str | None]

    def __post_init__(self) -> None:
        self.workdir, self.checkpoints = self.outputs.workdir, self.outputs.checkpoints
        self.reports, self.trace = self.outputs.reports, self.outputs.trace
        self.progress = self.reports.progress
        self.step = self.saved_step = self.resumed_from or 0
        self.shard = local_batch_shard(self.compiled.batch)
        self.stream = StreamState(self.task.stream())
        self.update_tokens = self.config.batch_size * self.task.tokens_per_row()
        self.timer = StepTimer()
        self.batch_seconds = float("inf")  # the shortest time of an evaluation batch
        self.statistics: dict[str, Any] = {}  # of the last evaluation
        self.unreported: tuple[int, dict[str, jax.Array]] | None = None
        rows = read_metrics(self.workdir / METRICS) if jax.process_index() == 0 else []
        evaluations = [row for row in rows if row["kind"] == "eval" and row["step"] <= self.step]
        self.evaluations = broadcast_from_leader(evaluations)

    def train(self) -> dict[str, Any]:
        """Runs to the end or to a signal; see the function `train`."""
        with self.reports, jax.set_mesh(self.mesh):
            start = {"weights": self.start.fact, "resumed": f"at step {self.step}" if self.step else ""}
            self.reports.header(self.config, self.task, self.compiled, {k: v for k, v in start.items() if v})
            self.state = self._restore_or_init()
            write_config(self.workdir, self.config)  # nothing is left that could refuse it
            self.reports.begin(self.config, self.step, self.signals.request)
            if self.resumed_from is None:
                self.start.write_report(self.workdir)
            else:
                self._save()  # completes what a kill right after the checkpoint left: its loss, and its checksums
            self.start = StartingWeights()  # frees the arrays
            try:
                stopped = not (self._evaluate_if_due() and self._steps())
            except DataError:
                if jax.process_count() == 1:  # other processes would wait for this one's part of the next update
                    self._report_last_step()
                    self._save(final=True)
                raise
            self._save(final=True)
            if stopped:
                self.progress.message(
                    f"stopped by {self.signals.received or 'another process'} at step {self.step}, state saved; "
                    "run the same command again to resume"
                )
            return self._finish(stopped)

    def _restore_or_init(self) -> State:
        spec = self.compiled.spec
        if self.resumed_from is not None:
            return self.checkpoints.restore(self.resumed_from, spec.with_shardings())
        return init_state(self.task.network, self.config.train, spec, self.config.seed, self.start.params)

    # --- steps ----------------------------------------------------------------------------------------

    def _steps(self) -> bool:
        """Takes the remaining steps; returns False if a signal ended them early."""
        batches = self.task.train_batches(self.step, self.shard)
        if math.isfinite(self.batch_seconds):
            # A backward pass takes about twice the time of a forward pass.
            passes = 3 * self.config.train.grad_accum * (2 if self.config.train.sam_rho else 1)
            self.progress.duration(passes * self.batch_seconds, measured=False)
        self.signals.waiting_for = self.compiled.train_step.unit
        self.timer.start()
        while self.step < self.config.train.steps:
            if waits_for_each(self.timer.last):
                self._report_last_step()
            if self.signals.should_stop(self.step):
                self._report_last_step()
                return False
            self.trace.before(self.step + 1)
            began = time.perf_counter()
            try:
                with self.signals.at_once():  # the next batch may have to wait for the network for minutes
                    rows = next(batches)
                batch = put_batch(rows, self.compiled.batch)
                self.timer.data_seconds += time.perf_counter() - began
                self.state, metrics = self.compiled.train_step(self.state, batch, self._before_micro_batch)
            except StoppedError:
                self._report_last_step()
                return False
            self.step += 1
            self.stream.update()
            self.trace.after(self.step, metrics)
            # Reading the metrics of the step before keeps the device busy with this one.
            self._report_last_step()
            self.unreported = (self.step, metrics)
            if not self._save_and_evaluate_if_due():
                return False
        return True

    def _before_micro_batch(self) -> None:
        """Raises `StoppedError` if a signal is to end the run within the next update."""
        self._report_last_step()
        if self.signals.should_stop(self.step):
            raise StoppedError

    def _save_and_evaluate_if_due(self) -> bool:
        """Writes a checkpoint and evaluates after a step where due; returns False if a signal ended that."""
        due_save = self.step % self.config.checkpoint.every == 0 or self.step == self.config.train.steps
        if not (due_save or self._evaluation_due()):
            return True
        self._report_last_step()
        if due_save:  # before the evaluation, so that nothing is lost if that fails
            self._save()
        finished = self._evaluate_if_due()
        self.reports.on_results()
        self.signals.waiting_for = self.compiled.train_step.unit
        self.timer.start()
        return finished

    def _report_last_step(self) -> None:
        """Records the metrics of the last dispatched step, waiting for it if necessary."""
        if self.unreported is None:
            return
        step, arrays = self.unreported
        self.unreported = None
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        metrics["ppl"] = perplexity(metrics["loss"])
        seconds = self.timer.lap()
        if self.timer.steps == 1:
            self.progress.duration(seconds, measured=True)
        metrics["tokens_per_s"] = self.update_tokens / self.timer.recent
        metrics["data_wait"] = self.timer.data_wait
        is_recorded = step % self.config.train.log_every == 0 or step in (1, self.config.train.steps)
        self.reports.step(step, metrics, is_row=is_recorded or metrics["bad_steps"] > 0)
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
        """Evaluates if that is due after the current step; returns False if a signal ended the evaluation."""
        if not self._evaluation_due():
            return True
        self.signals.waiting_for = "the current batch of the evaluation"
        result = self._evaluate()
        if result is None:
            return False
        texts = self._sample_texts()
        # That before the first update counts for nothing: the weights of then are not saved.
        earlier = (row["loss"] for row in self.evaluations if row["step"])
        best = min(filter(math.isfinite, earlier), default=math.inf)
        self.evaluations.append({"step": self.step, **result})
        self.reports.evaluation(self.step, result, self.statistics, texts)
        if self.step and (self.saved_step == self.step or result["loss"] < best):
            self._save()
        return True

    def _evaluate(self) -> dict[str, float] | None:
        """Returns results over the validation set, of EMA parameters too; None if a signal ended the evaluation."""
        weights = {name: self.state[name] for name in ("params", "ema_params") if name in self.state}
        parts = self.task.target_parts()
        sums = {name: EvaluationSums(parts if name == "params" else None) for name in weights}
        for batch in self.task.valid_batches(self.compiled.eval_batch_size, self.shard):
            if self.signals.should_stop(self.step):
                return None
            arrays = put_batch(batch, self.compiled.batch)
            if self.compiled.statistics_step is not None and not sums["params"].totals:
                self.statistics = jax.device_get(self.compiled.statistics_step(self.state["params"], arrays))
            for kind, params in weights.items():
                began = time.perf_counter()
                found = jax.device_get(self.compiled.eval_step(params, arrays))
                self.batch_seconds = min(self.batch_seconds, time.perf_counter() - began)
                sums[kind].add(found)
        windows = sums["params"].windows(self.step, self.task.fingerprint())
        if windows is not None and self.step == self.config.train.steps and jax.process_index() == 0:
            windows.write(self.workdir)  # before the row of the evaluation, which marks it as done
        results = {kind: self.task.summarise(found.totals) for kind, found in sums.items()}
        ema = {f"ema_{name}": value for name, value in results.get("ema_params", {}).items() if name != "tokens"}
        return results["params"] | ema

    def _sample_texts(self) -> list[dict[str, Any]]:
        if not self.config.eval.prompts:
            return []
        self.signals.waiting_for = "the sample texts"
        try:
            return self.task.sample_texts(self.state["params"], self.mesh)
        except UserError as error:
            self.progress.message(f"warning: eval.prompts: {error}")
            return []

    def _save(self, *, final: bool = False) -> None:
        self.signals.waiting_for = "the checkpoint"
        evaluated = [row for row in self.evaluations if row["step"] == self.step]
        is_new, self.saved_step = self.saved_step != self.step, self.step
        self.checkpoints.save(
            self.step,
            self.state,
            metadata={
                "config": to_dict(self.config),
                "data": self.task.fingerprint(),
                **self.origin,
                "description": {name: str(fact) for name, fact in self.task.describe().items()},
                **self.stream.metadata(),
            },
            metrics={"val_loss": evaluated[-1]["loss"]} if evaluated else None,
            tokenizer=self.task.tokenizer_bytes(),
            final=final,
        )
        if is_new:
            self.reports.checkpoint(self.step, self.checkpoints.path(self.step))

    # --- the end --------------------------------------------------------------------------------------

    def _finish(self, stopped: bool) -> dict[str, Any]:
        recent = np.asarray(jax.device_get(self.state["recent_loss"]))
        last = self.evaluations[-1] if self.evaluations else {}
        summary: dict[str, Any] = {
            "steps": self.step,
            "tokens": round(self.step * self.update_tokens),
            "train_loss": float(np.nanmean(recent)) if np.isfinite(recent).any() else None,
            "val_loss": last.get("loss"),
            "val_ppl": last.get("ppl"),
            "val_accuracy": last.get("accuracy"),
            "val_bits_per_byte": last.get("bits_per_byte"),
            **{f"val_{name}": value for name, value in last.items() if name.startswith(("ema_", "solved"))},
            **self._speed(),
            "compile_s": self.compiled.seconds,
            "peak_memory_mb": peak_memory_mb(),
            "n_params": self.task.network.n_params,
            "device": device_description(),
        }
        if stopped:
            summary["stopped"] = True
        elif jax.process_index() == 0:
            write_json(self.workdir / SUMMARY, summary)
        self.reports.end(summary)
        return summary

    def _speed(self) -> dict[str, float]:
        """Returns tokens_per_s and data_wait of this start, or by the recorded updates if it only had the end to do."""
        if self.timer.steps:
            rate = self.timer.steps * self.update_tokens / self.timer.seconds
            return {"tokens_per_s": rate, "data_wait": self.timer.data_wait}
        rows = read_metrics(self.workdir / METRICS) if jax.process_index() == 0 else []
        return broadcast_from_leader(mean_speed(rows))
