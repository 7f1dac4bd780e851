"""Updates whose micro-batches the host dispatches equal the update in one program, also after an interruption."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from psann_jax.bench.random_task import random_task
from psann_jax.config.io import default_config, parse
from psann_jax.data.batches import WHOLE_BATCH
from psann_jax.nn.mesh import make_mesh
from psann_jax.ops import kernels
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop, micro_batches
from psann_jax.train.mesh import batch_sharding, bytes_per_device, put_batch
from psann_jax.train.metrics import read_metrics
from psann_jax.train.micro_batches import MicroBatches, OneProgram, compile_update
from psann_jax.train.step import init_state, make_train_step, state_spec
from tests.support.experiment import final_state
from tests.support.tiny import tiny_config

UPDATES = 3


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("micro_batches")


class Setup:
    """What updates of a config need."""

    def __init__(self, task, config):
        self.task, self.config, self.mesh = task, config, make_mesh(config.mesh)
        self.spec = state_spec(task.network, config.train, self.mesh)
        self.batch = batch_sharding(self.mesh), task.batch_shapes(config.batch_size)

    def compiled(self):
        """Compiles the update that a run takes."""
        with jax.set_mesh(self.mesh):
            return compile_update(self.task, self.config.train, self.spec, self.batch, self.config.seed)

    @functools.cached_property
    def micro_batches(self):
        """The compiled update that a run on this machine takes."""
        return self.compiled()

    @functools.cached_property
    def one_program(self):
        """The compiled update in one program."""
        sharding, shapes = self.batch
        with jax.set_mesh(self.mesh):
            step = make_train_step(self.task, self.config.train, self.spec, sharding, self.config.seed)
            return OneProgram(step.lower(self.spec.abstract, shapes).compile())

    def batches(self):
        """Returns the first batches on the devices."""
        batches = self.task.train_batches(0, WHOLE_BATCH)
        return [put_batch(batch, self.batch[0]) for _, batch in zip(range(UPDATES), batches, strict=False)]

    def state(self):
        with jax.set_mesh(self.mesh):
            return init_state(self.task.network, self.config.train, self.spec, self.config.seed)


@functools.cache
def text(home, **overrides):
    """A waveresnet with dropout on short documents, so that micro-batches have different numbers of targets."""
    config = tiny_config(home, **{"train__grad_accum": 4, "train__batch_tokens": 512, **overrides})
    return Setup(LanguageModel.load(config, progress=False), config)


def sudoku():
    config = default_config("sudoku")
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=24, iterations=2, dropout=0.1)
    config.train.update(batch_tokens=81 * 6, grad_accum=3, precision="fp32", sam_rho=0.05, ema_decay=0.9)
    task = random_task(parse(config))
    return Setup(task, task.config)


def after_updates(case, step):
    """Returns the state after some updates, and the metrics of each, on the host."""
    state, rows = case.state(), []
    for batch in case.batches():
        state, metrics = step(state, batch)
        rows.append(jax.device_get(metrics))
    return jax.device_get(state), rows


def assert_equal(found, expected):
    """Checks two trees bit for bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, strict=True, err_msg=jax.tree_util.keystr(path))


@pytest.fixture
def one_by_one(monkeypatch):
    """Dispatches every micro-batch by itself."""
    monkeypatch.setattr(micro_batches, "_DISPATCH_S", 0.0)


SAM = {"train__sam_rho": 0.05, "train__grad_clip": 0.1, "train__ema_decay": 0.9}
FP16 = {"train__precision": "fp16", "train__sam_rho": 0.05}
BF16 = {
    "train__precision": "bf16",
    "train__label_smoothing": 0.1,
    "train__z_loss": 1e-3,
    "data__document_mask": True,
}
MUON = {"train__optimizer": "muon", "train__remat": "block", "model__dropout": 0.0}


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({}, marks=pytest.mark.slow),
        SAM,
        pytest.param(FP16, marks=pytest.mark.slow),
        pytest.param(BF16, marks=pytest.mark.slow),
        pytest.param(MUON, marks=pytest.mark.slow),
    ],
    ids=["fp32", "sam_clip_ema", "fp16", "bf16", "muon"],
)
def test_micro_batches_equal_one_program_bit_for_bit(home, one_by_one, overrides):
    case = text(home, **overrides)
    assert isinstance(case.micro_batches, MicroBatches)
    assert_equal(after_updates(case, case.micro_batches), after_updates(case, case.one_program))


@pytest.mark.slow
def test_updates_of_another_task_are_equal_too(one_by_one):
    case = sudoku()
    assert_equal(after_updates(case, case.micro_batches), after_updates(case, case.one_program))


def test_the_number_of_micro_batches_in_a_dispatch_changes_nothing(home, monkeypatch):
    case, results = text(home), []
    step = case.micro_batches
    for sizes in ([1], [4], [3], [2, 1, 4]):
        calls = iter(sizes * 4 * UPDATES)
        monkeypatch.setattr(type(step.pace), "next_size", lambda _, calls=calls: next(calls))
        results.append(after_updates(case, step))
    for result in results:
        assert_equal(result, results[0])


@pytest.mark.slow
def test_a_bad_update_is_skipped(home, one_by_one):
    """The first gradients in fp16 overflow at a large loss scale."""
    case, results = text(home, **FP16), []
    for step in (case.micro_batches, case.one_program):
        state = case.state()
        before = jax.device_get(state)
        state["loss_scale"] = jax.device_put(np.float32(2.0**60), state["loss_scale"].sharding)
        state, metrics = step(state, case.batches()[0])
        assert_equal(jax.device_get(state["params"]), before["params"])
        assert metrics["skipped_steps"] == 1
        results.append(jax.device_get((state, metrics)))
    assert_equal(*results)


class StopError(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 3, 4, 7])
def test_an_interrupted_update_leaves_the_state_as_it_was(home, one_by_one, at):
    """Stopped before each kind of micro-batch, in both passes of SAM; 4 micro-batches in each."""
    case = text(home, **SAM)
    step, batch, calls = case.micro_batches, case.batches()[0], []

    def stop():
        calls.append(None)
        if len(calls) > at:
            raise StopError

    state = case.state()
    before = jax.device_get(state)
    with pytest.raises(StopError):
        step(state, batch, stop)
    assert len(calls) == at + 1
    assert_equal(jax.device_get(state), before)
    assert_equal(jax.device_get(step(state, batch)), jax.device_get(step(case.state(), batch)))


def test_slow_micro_batches_are_dispatched_one_by_one_and_fast_ones_together(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(micro_batches.time, "perf_counter", lambda: now[0])
    assert micro_batches.waits_for_each(1.5)
    assert not micro_batches.waits_for_each(0.5)
    pace, sizes = micro_batches._Pace(), []
    for seconds in (0.1, 0.1, 0.1, 0.4, 3.0, 3.0):
        size = pace.next_size()
        pace.dispatched(size)
        now[0] += size * seconds
        sizes.append(size)
    assert sizes == [1, 10, 10, 10, 2, 1]


def test_one_program_where_an_update_cannot_be_divided(home, monkeypatch):
    """Without micro-batches, with several processes, and on accelerators."""
    assert isinstance(text(home, train__grad_accum=1).compiled(), OneProgram)
    case = text(home)
    with monkeypatch.context() as patch:
        patch.setattr(micro_batches.jax, "process_count", lambda: 2)
        assert not micro_batches.waits_for_each(100.0)
        assert isinstance(case.compiled(), OneProgram)
    with monkeypatch.context() as patch:
        # Only the choice is seen, because this machine cannot compile for an accelerator.
        patch.setattr(kernels, "platform", lambda: "gpu")
        assert not micro_batches.waits_for_each(100.0)
        patch.setattr(micro_batches, "make_train_step", lambda *_: jax.jit(lambda state, batch: (state, batch)))
        assert isinstance(case.compiled(), OneProgram)


@pytest.mark.parametrize("sam_rho", [False, True])
def test_the_memory_counts_state_gradients_and_activations(home, sam_rho):
    case = text(home, **(SAM if sam_rho else {}))
    state = bytes_per_device(case.spec.abstract, case.spec.shardings)
    params = bytes_per_device(case.spec.abstract["params"], case.spec.shardings["params"])
    step = case.micro_batches
    activations = step.add.memory_analysis().temp_size_in_bytes
    batch = bytes_per_device(case.batch[1], dict.fromkeys(case.batch[1], case.batch[0]))
    expected = state + params + (params if sam_rho else 0) + activations + batch
    assert step.memory_bytes() == pytest.approx(expected, abs=4096)
    assert step.memory_bytes() == pytest.approx(case.one_program.memory_bytes(), rel=0.3)
    assert "fusion" in step.as_text()


# --- runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment(home):
    """A config with micro-batches, its task, its compiled steps, and the workdir of an uninterrupted run."""
    config = tiny_config(home, train__grad_accum=4, train__steps=5, eval__every=0)
    task = LanguageModel.load(config, progress=False)
    compiled = loop.compile_steps(task, config, loop.make_mesh(config.mesh))
    assert loop.train(config, lambda: task, home / "whole")["steps"] == 5
    return config, task, compiled, home / "whole"


def rows_of(workdir):
    timings = {"tokens_per_s", "data_wait"}
    return [{k: v for k, v in row.items() if k not in timings} for row in read_metrics(workdir / "metrics.jsonl")]


def test_a_signal_within_an_update_loses_nothing(experiment, tmp_path, monkeypatch, one_by_one, capsys):
    config, task, compiled, whole = experiment
    monkeypatch.setattr(loop, "compile_steps", lambda *_: compiled)
    calls, waiting = [], set()

    def should_stop(signals, step):
        calls.append(step)
        waiting.add(signals.waiting_for)
        return calls.count(2) == 3  # one at the boundary, one before each micro-batch

    with monkeypatch.context() as patch:
        patch.setattr(loop.StopSignals, "should_stop", should_stop)
        summary = loop.train(config, lambda: task, tmp_path / "run")
    assert summary["stopped"]
    assert summary["steps"] == 2
    assert "at step 2, state saved" in capsys.readouterr().err
    assert "the current micro-batch" in waiting
    assert [row["step"] for row in rows_of(tmp_path / "run") if row["kind"] == "train"] == [1, 2]
    assert loop.train(config, lambda: task, tmp_path / "run")["steps"] == 5
    np.testing.assert_equal(rows_of(tmp_path / "run"), rows_of(whole))
    assert_equal(final_state(tmp_path / "run"), final_state(whole))


def test_a_row_is_written_before_the_next_update(experiment, tmp_path, monkeypatch, one_by_one):
    """An update may take minutes, and nobody wants to wait for two to see the result of one."""
    config, task, compiled, _ = experiment
    monkeypatch.setattr(loop, "compile_steps", lambda *_: compiled)
    seen = {}
    before = loop._Run._before_micro_batch

    def look(run):
        before(run)
        seen.setdefault(run.step, [row["step"] for row in rows_of(tmp_path / "run") if row["kind"] == "train"])

    monkeypatch.setattr(loop._Run, "_before_micro_batch", look)
    loop.train(config, lambda: task, tmp_path / "run")
    assert seen == {step: list(range(1, step + 1)) for step in range(5)}


def test_slow_updates_in_one_program_are_waited_for(home, tmp_path, monkeypatch, one_by_one):
    """A signal that arrives during an update must not wait for the next one."""
    config = tiny_config(home, train__steps=4, eval__every=0)
    task = LanguageModel.load(config, progress=False)
    seen = []

    def should_stop(signals, step):
        if signals.waiting_for == "the current update":
            seen.append((step, [row["step"] for row in rows_of(tmp_path / "run") if row["kind"] == "train"]))
        return False

    monkeypatch.setattr(loop.StopSignals, "should_stop", should_stop)
    loop.train(config, lambda: task, tmp_path / "run")
    assert seen == [(step, list(range(1, step + 1))) for step in range(4)]


def test_many_bad_updates_end_the_run_with_the_state_of_the_last(experiment, tmp_path, monkeypatch, one_by_one):
    config, task, _, _ = experiment
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_bad_steps=2))
    loss = task.loss
    monkeypatch.setattr(task, "loss", lambda *args: ((made := loss(*args))[0] + jax.numpy.nan, made[1]))
    with pytest.raises(loop.UserError, match="2 updates in a row were not finite, the last at step 2"):
        loop.train(config, lambda: task, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step_2").is_dir()
