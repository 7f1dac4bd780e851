"""Training runs: a run that is stopped anywhere resumes as if nothing had happened."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.evaluation import WINDOWS, WindowLosses
from psann_jax.utils.errors import UserError
from tests.support.loop_runs import assert_same_end, rows_of, state_of, stop_at
from tests.support.processes import run_script
from tests.support.tiny import tiny_config


def test_a_run_reduces_the_loss_and_writes_its_files(run, base, tmp_path, uninterrupted):
    summary, rows, _ = uninterrupted
    assert {"steps", "tokens", "train_loss", "val_loss", "val_ppl", "tokens_per_s", "compile_s"} <= summary.keys()
    assert {"peak_memory_mb", "n_params"} <= summary.keys()
    assert summary["steps"] == 8
    assert summary["tokens"] == 8 * 256
    assert "CPU" in summary["device"]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    assert [row["step"] for row in evaluations] == [0, 4, 8]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] - 0.5
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 9))
    run(tmp_path / "run")
    written = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"checkpoints", "config.json", "metrics.jsonl", "summary.json", "tensorboard", WINDOWS} <= written
    windows = WindowLosses.read(tmp_path / "run")
    assert windows.step == 8
    assert windows.nll_W.sum() / windows.weight_W.sum() == pytest.approx(evaluations[-1]["loss"], rel=1e-6)
    assert windows.weight_W.sum() == evaluations[-1]["tokens"]
    assert len(windows.nll_W) == base[2].data.n_valid_windows


def test_padding_is_not_counted_as_tokens(run, base, tmp_path):
    config = tiny_config(base[0], data__pack=False)
    task = LanguageModel.load(config, progress=False)
    summary = run(tmp_path / "run", config, task)
    assert 0 < task.tokens_per_row() < config.data.max_length
    assert summary["tokens"] == round(8 * config.batch_size * task.tokens_per_row()) < 8 * config.train.batch_tokens


@pytest.mark.parametrize("step", [0, 3, 7])
def test_stopped_by_a_signal_and_resumed_equals_uninterrupted(run, base, tmp_path, monkeypatch, uninterrupted, step):
    stop_at(monkeypatch, step=step)
    assert run(tmp_path / "run")["stopped"]
    assert not (tmp_path / "run" / "summary.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(loop, "compile_steps", lambda *_: base[3])
    run(tmp_path / "run")
    assert_same_end(tmp_path / "run", base, uninterrupted)


@pytest.mark.parametrize("step", [4, 8])
def test_stopped_during_evaluation_and_resumed_equals_uninterrupted(
    run, base, tmp_path, monkeypatch, uninterrupted, step
):
    stop_at(monkeypatch, step=step, call=1)
    assert run(tmp_path / "run")["stopped"]
    monkeypatch.undo()
    monkeypatch.setattr(loop, "compile_steps", lambda *_: base[3])
    run(tmp_path / "run")
    assert_same_end(tmp_path / "run", base, uninterrupted)


@pytest.mark.parametrize("step", [1, 4])
def test_killed_without_warning_and_resumed_equals_uninterrupted(run, base, tmp_path, monkeypatch, uninterrupted, step):
    def should_stop(self, now):
        if now == step:
            raise KeyboardInterrupt  # leaves the loop without saving, as a kill does
        return False

    monkeypatch.setattr(loop.StopSignals, "should_stop", should_stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(loop, "compile_steps", lambda *_: base[3])
    run(tmp_path / "run")
    assert_same_end(tmp_path / "run", base, uninterrupted)


def test_a_complete_run_says_so_and_continues_with_more_steps(base, tmp_path, capsys):
    _, _, task, _ = base
    short = tiny_config(base[0], train__steps=3, train__schedule="constant")
    long = tiny_config(base[0], train__steps=5, train__schedule="constant")
    workdir = tmp_path / "run"
    assert loop.train(short, lambda: task, workdir)["steps"] == 3
    assert loop.train(short, lambda: task, workdir)["steps"] == 3
    assert "complete at step 3" in capsys.readouterr().out
    assert loop.train(long, lambda: task, workdir)["steps"] == 5
    whole = tmp_path / "whole"
    loop.train(long, lambda: task, whole)
    train_rows = [[r for r in rows_of(w) if r["kind"] == "train"] for w in (workdir, whole)]
    assert train_rows[0] == train_rows[1]
    with pytest.raises(UserError, match=r"train\.steps: is 3, but the run in .* has done 5"):
        loop.train(short, lambda: task, workdir)


def test_the_workdir_of_another_run_is_refused_and_unchanged(base, run, tmp_path):
    workdir = tmp_path / "run"
    run(workdir)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(UserError, match=r"holds another run: train\.lr is 0\.01 there and 0\.5 here"):
        loop.train(tiny_config(base[0], eval__every=4, train__lr=0.5), lambda: base[2], workdir)
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_non_finite_updates_are_skipped_and_counted_and_end_the_run_with_its_state_saved(base, tmp_path, monkeypatch):
    config = tiny_config(base[0], train__max_bad_steps=3)
    task = LanguageModel(config, base[2].data)
    loss = task.loss

    def poisoned(params, batch, key, step):
        value, stats = loss(params, batch, key, step)
        # Depends on the content of the batch, because the compiled step sees no Python counter.
        return value + jax.numpy.where(batch["tokens"].sum() % 2 == 0, jax.numpy.nan, 0.0), stats

    monkeypatch.setattr(task, "loss", poisoned)
    batches = list(
        zip(range(60), task.data.train_batches(seed=config.seed, batch_size=config.batch_size), strict=False)
    )
    bad = [b["tokens"].sum() % 2 == 0 for _, b in batches]
    config = tiny_config(base[0], train__max_bad_steps=3, train__steps=60)
    task.config = config
    end = next(i for i in range(2, 60) if all(bad[i - 2 : i + 1])) + 1
    with pytest.raises(UserError, match=rf"3 updates in a row were not finite, the last at step {end};"):
        loop.train(config, lambda: task, tmp_path / "run")
    rows = [r for r in rows_of(tmp_path / "run") if r["kind"] == "train"]
    assert [r["skipped_steps"] for r in rows] == list(np.cumsum(bad)[:end])
    with Checkpoints(tmp_path / "run" / "checkpoints", config.checkpoint) as checkpoints:
        spec = loop.compile_steps(task, config, loop.make_mesh(config.mesh)).spec
        state = checkpoints.restore(checkpoints.latest(), spec.with_shardings())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))


def test_each_step_is_compiled_once(base, tmp_path, monkeypatch):
    _, config, task, _ = base
    compilations = []
    listener = functools.partial(_count, compilations)
    jax.monitoring.register_event_duration_secs_listener(listener)
    loop.train(config, lambda: task, tmp_path / "run")
    jax.monitoring.unregister_event_duration_listener(listener)
    names = [name for name in compilations if name in ("train_step", "eval_step")]
    assert sorted(names) == ["eval_step", "train_step"]


def _count(compilations, event, duration, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(kwargs.get("fun_name", "").removeprefix("jit_").removeprefix("jit(").removesuffix(")"))


def test_initial_parameters_start_a_new_run_and_are_ignored_by_a_resumed_one(
    run, base, tmp_path, monkeypatch, uninterrupted
):
    _, config, task, compiled = base
    _, rows, state = uninterrupted
    params = jax.tree.map(np.asarray, state["params"])
    last = [row for row in rows if row["kind"] == "eval"][-1]
    loop.train(config, lambda: task, tmp_path / "whole", initial_params=params)
    first = rows_of(tmp_path / "whole")[0]
    assert (first["step"], first["loss"]) == (0, last["loss"])
    for step in (0, 4):
        stop_at(monkeypatch, step=step)
        loop.train(config, lambda: task, tmp_path / "stopped", initial_params=params)
        monkeypatch.undo()
        monkeypatch.setattr(loop, "compile_steps", lambda *_: compiled)
    run(tmp_path / "stopped")
    jax.tree.map(
        np.testing.assert_array_equal, state_of(tmp_path / "stopped", base), state_of(tmp_path / "whole", base)
    )


def test_checkpoints_say_what_a_document_is(base, uninterrupted, run, tmp_path):
    """data.document=auto depends on the text; only the run itself knows what it chose."""
    run(tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints", base[1].checkpoint) as checkpoints:
        description = checkpoints.metadata(checkpoints.latest())["description"]
    assert description["documents"].startswith("each line of ")


def test_the_callback_sees_the_rows_of_each_evaluation_and_checkpoint(base, run, tmp_path):
    _, config, task, _ = base
    seen = []
    loop.train(config, lambda: task, tmp_path / "run", on_results=lambda: seen.append(rows_of(tmp_path / "run")[-1]))
    assert [(row["kind"], row["step"]) for row in seen] == [("train", 3), ("eval", 4), ("train", 6), ("eval", 8)]


def test_partial_checkpoints_are_reported_and_cleared_at_the_start(base, run, tmp_path, capsys, uninterrupted):
    workdir = tmp_path / "run"
    run(workdir)
    shutil.rmtree(workdir / "checkpoints" / "step_8" / "params")
    (workdir / "checkpoints" / "step_7.orbax-checkpoint-tmp").mkdir()
    (workdir / "summary.json").unlink()
    capsys.readouterr()
    run(workdir)
    assert capsys.readouterr().out == f"{workdir / 'checkpoints' / 'step_8'}: incomplete; deleted\n"
    assert_same_end(workdir, base, uninterrupted)
    assert not list((workdir / "checkpoints").glob("*tmp*"))


def test_a_start_that_fails_claims_nothing(base, run, tmp_path):
    """Neither a task that cannot be made nor parameters that do not fit."""
    task = base[2]
    other = tiny_config(base[0], eval__every=4, train__lr=0.5)

    def refuse():
        raise UserError("data.max_length: is 100000, but ...")

    with pytest.raises(UserError, match="max_length"):
        loop.train(other, refuse, tmp_path / "run")
    with pytest.raises(UserError, match="initial_params"):
        loop.train(other, lambda: task, tmp_path / "run", initial_params={"embed": np.zeros(3)})
    assert not (tmp_path / "run" / "config.json").exists()
    assert run(tmp_path / "run")["steps"] == 8


def test_doubtful_settings_and_data_are_reported(base, run, tmp_path, capsys, monkeypatch):
    _, config, task, _ = base
    monkeypatch.setattr(task, "warnings", lambda: ("the moon is full",), raising=False)
    long = dataclasses.replace(config, train=dataclasses.replace(config.train, warmup_steps=8))
    run(tmp_path / "run", config=long)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert lines == [
        "warning: train.warmup_steps is 8, but train.steps is 8; the learning rate only rises",
        "warning: the moon is full",
    ]


def test_slow_updates_are_announced_before_the_first_and_after_it(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("psann_jax.train.progress._SLOW_UPDATE_S", 0.0)
    run(tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    kinds = [
        name
        for line in lines
        for name, part in {"compiling": "compiling", "estimate": "estimated from", "update": "s per update, 1"}.items()
        if part in line
    ]
    assert kinds == ["compiling", "estimate", "update", "update"]  # the estimate matches twice
    assert lines.index("compiling ...") < min(i for i, line in enumerate(lines) if "per update" in line)


def test_config_json_holds_the_config(run, base, tmp_path):
    from psann_jax.config.io import parse

    run(tmp_path / "run")
    assert parse(json.loads((tmp_path / "run" / "config.json").read_text())) == base[1]


def test_the_step_loop_has_no_implicit_transfers(base, run, tmp_path, monkeypatch):
    """Batches and metrics are transferred explicitly; anything else would make the device wait in every step."""
    _, config, _, _ = base
    steps = loop._Run._steps

    def guarded(self):
        with jax.transfer_guard("disallow"):
            with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
                jax.numpy.add(np.ones(2), self.state["step"])  # the guard works
            return steps(self)

    monkeypatch.setattr(loop._Run, "_steps", guarded)
    quiet = dataclasses.replace(config, eval=dataclasses.replace(config.eval, every=0))
    assert run(tmp_path / "run", config=quiet)["steps"] == 8


@pytest.mark.slow
def test_a_second_start_uses_the_compilation_cache_of_the_first(tmp_path):
    """In separate processes, like a user who runs the same command twice."""
    script = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_compilation_cache_dir", None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from tests.support.tiny import tiny_config
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.compilation import compile_steps, enable_compilation_cache
from psann_jax.nn.mesh import make_mesh
directory = Path(sys.argv[1])
enable_compilation_cache(directory / "programs")
config = tiny_config(directory)
compiled = compile_steps(LanguageModel.load(config, progress=False), config, make_mesh(config.mesh))
print(compiled.saved_seconds)
"""
    (tmp_path / "start.py").write_text(script)
    first, second = (float(run_script(tmp_path / "start.py", tmp_path)) for _ in range(2))
    assert first == 0
    assert second != 0  # negative if loading took longer than compiling had taken
    assert any((tmp_path / "programs").iterdir())
