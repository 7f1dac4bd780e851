"""The checks of the self-test pass on correct code, and each fails on code that is broken in the way it looks for."""

import copy
import dataclasses
import itertools
import json
import math
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.cli import selftest
from psann_jax.cli.program import run_program
from psann_jax.data.batches import BatchShard
from psann_jax.models import network as network_module
from psann_jax.sample import next_token
from psann_jax.selftest import IDS, basics, child, decoding, parallel, report, resuming, sizes, speed, training
from psann_jax.selftest.check import Check, Findings, Machine, SkipError, run_check, run_checks
from psann_jax.selftest.sizes import Shape, Sizes
from psann_jax.selftest.suite import CHECKS
from psann_jax.selftest.text import MarkovText
from psann_jax.train import loop
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.mesh import put_batch
from psann_jax.utils.errors import UserError
from tests.support.processes import run_script

TINY = Sizes(
    small=Shape(64, 1, 4, 128, 64, 64),
    small_tokens=1024,
    speed=Shape(16, 1, 2, 32, 50, 16),
    speed_tokens=(64, 128),
    speed_steps=2,
    memory=Shape(32, 4, 2, 64, 16, 64),
    memory_tokens=1024,
    precision="fp32",
    bases=("modern", "respsann"),
    parallel_bases=("respsann",),
)
CPU = Machine("cpu", 1)


def direct(function, *args, **kwargs):
    """Replaces `child.in_child`: calls the function in this process."""
    return function(*args, **kwargs)


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(child, "in_child", direct)


def failures(check, tiny=TINY, machine=CPU):
    record = run_check(check, tiny, machine)
    assert record["status"] == ("failed" if "reason" in record else "passed")
    return record.get("reason", "")


# --- the text, the sizes, the runner ------------------------------------------------------------------


def test_the_chain_is_a_function_of_seed_and_step_with_four_successors_per_token():
    text = MarkovText(16, 40)
    options = {"batch_size": 64}
    batches = text.train_batches(seed=1, start_step=0, **options)
    later = [next(batches) for _ in range(3)][2]
    np.testing.assert_equal(next(text.train_batches(seed=1, start_step=2, **options)), later)
    half = next(text.train_batches(seed=1, start_step=2, **options, shard=BatchShard((1,), 2)))
    np.testing.assert_equal(half["tokens"], later["tokens"][32:])
    inside = later["segment_ids"][:, 1:] == later["segment_ids"][:, :-1]
    pairs = set(zip(later["tokens"][:, :-1][inside], later["tokens"][:, 1:][inside], strict=True))
    assert 16 * 3 < len(pairs) <= 16 * 4  # four successors per token
    starts = later["positions"] == 0
    assert (starts.sum(axis=1) == 2).all()
    assert (np.diff(later["segment_ids"], axis=1) == starts[:, 1:]).all()
    assert later["tokens"].max() == 15
    assert later["tokens"].dtype == np.int32


def test_the_scale_divides_batch_sizes():
    assert sizes.sizes_for("gpu", 1).speed_tokens == (65_536, 131_072, 262_144)
    on_cpu = sizes.sizes_for("cpu", 1)
    assert on_cpu.speed_tokens == (1024, 2048, 4096)
    assert on_cpu.speed.d_model < Sizes().speed.d_model
    small = sizes.sizes_for("cpu", 8, 4096)
    assert small.speed_tokens[0] // small.speed.max_length == 8
    for base in Sizes().bases:
        sizes.experiment(small.speed, base, small.speed_tokens[0])


def test_a_check_that_raises_fails_and_the_others_still_run(capsys):
    def crash(*_):
        raise ZeroDivisionError("no")

    def skip(*_):
        raise SkipError("too few")

    def fail(*_):
        return Findings({"x": 1}, ["bad", "worse"])

    checks = [Check(f.__name__, "t", {"least": 1}, f) for f in (crash, skip, fail)]
    checks.append(Check("good", "t", {}, lambda *_: Findings({"x": 2})))
    written = []
    records = run_checks(checks, TINY, CPU, lambda r: written.append(len(r)))
    assert [r["status"] for r in records] == ["failed", "skipped", "failed", "passed"]
    assert [r.get("reason") for r in records] == ["ZeroDivisionError: no", "too few", "bad; worse", None]
    assert records[2]["measured"] == {"x": 1}
    assert records[0]["threshold"] == {"least": 1}
    assert written == [1, 2, 3, 4]
    assert "skip skipped" in capsys.readouterr().err


def test_a_child_returns_results_and_reports_exceptions_and_exits():
    assert child.in_child(math.hypot, 3, 4) == 5
    with pytest.raises(child.ChildError, match="JSONDecodeError: Expecting value"):
        child.in_child(json.loads, "x")
    with pytest.raises(UserError, match="its process ended with code 3"):
        child.in_child(os._exit, 3)


# --- each check on correct and on broken code -----------------------------------------------------------


def test_environment(in_process, monkeypatch):
    record = run_check(CHECKS["GPU-01"], TINY, CPU)
    assert record["status"] == "passed", record
    bad = {**record["measured"]["bases"]["respsann"], "loss": math.nan, "wrong_arrays": ["head"], "grad_norm": math.inf}
    monkeypatch.setattr(child, "in_child", lambda *_: {"respsann": bad})
    reason = failures(CHECKS["GPU-01"])
    assert "from that of a uniform distribution" in reason
    assert "changed frozen ones: head" in reason
    assert "the gradient norm is inf" in reason


def test_frozen_arrays_do_not_change():
    found = basics.measure_step(sizes.small_experiment(TINY, "ngt", warmup_steps=0))
    assert found["wrong_arrays"] == []
    assert found["n_arrays"] > 20


@pytest.mark.slow
def test_precision(in_process, monkeypatch):
    record = run_check(CHECKS["GPU-02"], TINY, CPU)
    assert record["status"] == "passed", record
    correct = record["measured"]["respsann"]

    def reason(change):
        runs = copy.deepcopy(correct)
        change(runs)
        monkeypatch.setattr(child, "in_child", lambda *_: runs)
        return failures(CHECKS["GPU-02"])

    assert not reason(lambda runs: None)
    losses = correct["fp32"]["losses"]
    assert "bf16 losses differ" in reason(lambda runs: runs["bf16"]["losses"].__setitem__(7, losses[7] * 1.05))
    assert "fp16 losses differ" in reason(lambda runs: runs["fp16"]["losses"].__setitem__(-1, math.nan))
    assert "fp32: the loss changed" in reason(lambda runs: [run.update(losses=[2.7] * 20) for run in runs.values()])
    assert "skipped 3 updates" in reason(lambda runs: runs["fp16"].update(skipped_steps=3))


@pytest.mark.slow
def test_a_precision_that_is_not_in_use_fails(in_process, monkeypatch):
    monkeypatch.setitem(network_module.DTYPES, "bf16", jnp.float32)
    monkeypatch.setattr(basics, "MAX_DIFFERENCE", {"bf16": 0.03})
    assert "bf16 losses are identical to fp32 losses" in failures(CHECKS["GPU-02"])


@pytest.mark.slow
def test_throughput(in_process, monkeypatch):
    record = run_check(CHECKS["GPU-03"], TINY, CPU)
    entries = record["measured"]["entries"]
    assert [(e["base"], e["batch_tokens"]) for e in entries] == list(itertools.product(TINY.bases, TINY.speed_tokens))
    cases = (
        ({"mfu": 1.5}, "MFU is 1.5"),
        ({"tokens_per_s": 0.0}, "0.0 tokens/s"),
        ({"fastest_tokens_per_s": entries[0]["fastest_tokens_per_s"] / 3}, "the largest batch reaches"),
        ({"error": "XlaRuntimeError: out of memory"}, "128 tokens: XlaRuntimeError: out of memory"),
    )
    for change, expected in cases:
        monkeypatch.setattr(child, "in_child", lambda *_, change=change: [entries[0], {**entries[0], **change}])
        assert expected in failures(CHECKS["GPU-03"])

    def dies(*_):
        raise UserError("its process ended with code -9")

    monkeypatch.setattr(child, "in_child", dies)
    ended = "its process ended with code -9"
    assert failures(CHECKS["GPU-03"]) == f"modern: {ended}; respsann: {ended}"


@pytest.mark.slow
def test_memory(in_process, monkeypatch, tmp_path):
    record = run_check(CHECKS["GPU-04"], TINY, CPU)
    assert record["status"] == "passed", record
    entries = record["measured"]["entries"]
    assert [e["grad_checkpoint"] for e in entries] == [False, True]
    system = {"device": "1 x CPU", "python": "3.11", "packages": {}}
    report.write_report(tmp_path, {"timestamp_utc": "2026-01-02T03:04:05Z", "system": system, "results": [record]})
    assert [e["remat"] for e in json.loads((tmp_path / "memory.json").read_text())] == ["none", "block"]
    for change, expected in (({"compiler_memory_mb": 1e6}, "compiler's estimate"), ({"losses": [1.0] * 7}, "changes")):
        answers = iter((entries[0], {**entries[1], **change}))
        monkeypatch.setattr(child, "in_child", lambda *_, answers=answers: next(answers))
        assert expected in failures(CHECKS["GPU-04"])


def test_a_cpu_is_split_into_devices_and_one_accelerator_skips():
    assert parallel.devices_to_use(CPU) == (8, 8)
    assert parallel.devices_to_use(Machine("cpu", 6)) == (4, 0)
    assert parallel.devices_to_use(Machine("tpu", 2)) == (2, 0)
    for name in ("GPU-05", "GPU-06"):
        record = run_check(CHECKS[name], TINY, Machine("gpu", 1))
        assert record["status"] == "skipped"
        assert "needs 2 devices" in record["reason"]


def parity_results():
    """Runs GPU-05 on correct code, then with the same rows on all devices; for a process with four devices."""
    child.in_child = direct
    machine = Machine("cpu", jax.device_count())
    correct = failures(CHECKS["GPU-05"], machine=machine)

    def same_rows(batch, sharding):
        if sharding.mesh.size > 1:
            n = sharding.mesh.size
            batch = {name: np.concatenate([x[: len(x) // n]] * n) for name, x in batch.items()}
        return put_batch(batch, sharding)

    training.put_batch = same_rows
    return {"correct": correct, "same_rows": failures(CHECKS["GPU-05"], machine=machine)}


@pytest.mark.slow
def test_parity_over_devices():
    results = json.loads(run_script("selftest/test_checks.py", devices=4).splitlines()[-1])
    assert results["correct"] == ""
    assert "loss differs" in results["same_rows"]
    assert "params differs" in results["same_rows"]


def test_an_unsharded_model_and_an_untrained_one_fail(monkeypatch):
    mesh = {"axes": [1, 8, 1], "loss_difference": 0.0, "params_difference": 0.0, "share_held": 1.0}
    result = {"losses": [2.0, 1.99], "meshes": {"fsdp": mesh, "tensor": mesh, "mixed": mesh}}
    monkeypatch.setattr(child, "in_child", lambda *_, **__: result)
    reason = failures(CHECKS["GPU-06"])
    assert "a device holds 1.00 of the parameters" in reason
    assert "respsann on one device: the loss changed from" in reason


@pytest.mark.slow
def test_generation(in_process, monkeypatch):
    record = run_check(CHECKS["GPU-07"], TINY, CPU)
    assert record["status"] == "passed", record
    monkeypatch.setattr(next_token, "filtered_weights", lambda s, sampling: jax.nn.softmax(s / sampling.temperature))
    reason = failures(CHECKS["GPU-07"])
    assert "top_k tokens are outside top k" in reason
    assert "top_p tokens are outside top p" in reason
    correct = record["measured"]["respsann"]
    wrong = {"invalid": 1, "not_finite": 2, "logprob_error": math.nan}
    altered = {**correct, "unfiltered": correct["greedy"], "greedy": {**correct["greedy"], **wrong}}
    monkeypatch.setattr(child, "in_child", lambda *_: {"respsann": altered})
    reason = failures(CHECKS["GPU-07"])
    assert "0% of the unfiltered tokens are outside top k" in reason
    assert "greedy: 1 ids outside" in reason
    assert "greedy: 2 logits or log-probabilities that are not finite" in reason
    assert "greedy: log-probabilities are off by nan" in reason


def test_a_network_that_returns_nan_fails(in_process, monkeypatch):
    init = decoding.Sampler.update
    bad = lambda self, params: init(self, jax.tree.map(lambda p: p * jnp.nan, params))  # noqa: E731
    monkeypatch.setattr(decoding.Sampler, "update", bad)
    assert "not finite" in failures(CHECKS["GPU-07"])


@pytest.fixture(scope="module")
def compiled():
    """The compiled steps of the resume check, shared by its runs."""
    config = resuming.resume_experiment(TINY)
    return loop.compile_steps(training.make_task(config), config, loop.make_mesh(config.mesh))


@pytest.mark.slow
def test_resume(in_process, monkeypatch, compiled):
    monkeypatch.setattr(loop, "compile_steps", lambda *_: compiled)
    record = run_check(CHECKS["GPU-08"], TINY, CPU)
    assert record["status"] == "passed", record
    assert record["measured"]["stopped_at"] == 10
    assert len(record["measured"]["losses"]) == 20


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        pytest.param("data", "the losses of updates [11", marks=pytest.mark.slow),
        pytest.param("params", "arrays of the final state differ", marks=pytest.mark.slow),
        pytest.param("lost", "resumed at 0", marks=pytest.mark.slow),
    ],
)
def test_a_broken_resume_fails(in_process, monkeypatch, compiled, broken, expected):
    monkeypatch.setattr(loop, "compile_steps", lambda *_: compiled)
    if broken == "data":
        batches = MarkovText.train_batches
        monkeypatch.setattr(
            MarkovText, "train_batches", lambda self, **options: batches(self, **{**options, "start_step": 0})
        )
    elif broken == "params":
        restore = Checkpoints.restore
        monkeypatch.setattr(Checkpoints, "restore", lambda self, *a: _perturbed(restore(self, *a)))
    else:
        train = resuming._train

        def forgetful(config, workdir, **options):
            shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
            return train(config, workdir, **options)

        monkeypatch.setattr(resuming, "_train", forgetful)
    assert expected in failures(CHECKS["GPU-08"])


def _perturbed(state):
    """Changes one weight slightly."""
    head = state["params"]["head"]
    return {**state, "params": {**state["params"], "head": head.at[0, 0].add(1e-3)}}


# --- the command --------------------------------------------------------------------------------------


def test_the_command_runs_a_check_and_writes_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sizes, "sizes_for", lambda *_: TINY)
    out, result = tmp_path / "a" / "out", tmp_path / "result.json"
    selftest.main(["--only=gpu-01", f"--out={out}", f"--json={result}"])
    assert {p.name for p in out.iterdir()} == {"summary.json", "README.md"}
    saved = json.loads(result.read_text())
    assert saved == json.loads((out / "summary.json").read_text())
    assert set(saved) == {"timestamp_utc", "system", "results"}
    (only,) = saved["results"]
    assert set(only) == {"id", "title", "status", "threshold", "measured", "seconds"}
    assert saved["system"]["backend"] == "cpu"
    assert "GPU-01 passed in" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"has the summary\.json of another self-test or of a run"):
        selftest.main(["--only=GPU-01", f"--out={out}"])
    failing = dataclasses.replace(CHECKS["GPU-01"], run=lambda *_: Findings({}, ["bad"]))
    monkeypatch.setitem(CHECKS, "GPU-01", failing)
    with pytest.raises(SystemExit) as ended:
        selftest.main(["--only=GPU-01", f"--out={tmp_path / 'b'}"])
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=GPU-11"], "--only: 'GPU-11' is not a check, did you mean GPU-01?; choose from GPU-01"),
        (["--onyl=GPU-01"], "--onyl: unknown argument, did you mean --only?"),
        (["--only="], "--only: '' is not a check"),
        (["--out=/dev/null/x"], "--out: /dev/null"),
        (["--json=/nowhere/x.json"], "--json: /nowhere/x.json: there is no directory"),
        (["--scale=3"], "--scale: is 3, must be a power of two from 1 to 4096"),
    ],
)
def test_errors_are_reported_in_one_line(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_program(["selftest", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_ids_match_the_checks():
    assert tuple(CHECKS) == IDS
    assert speed.THROUGHPUT is CHECKS["GPU-03"]


if __name__ == "__main__":
    print(json.dumps(parity_results()))
