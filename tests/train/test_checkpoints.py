"""Saving, keeping and restoring checkpoints."""

import json
import math
import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from psann_jax.train import checkpoint_reader
from psann_jax.train import checkpoints as writer
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.utils.errors import UserError
from tests.support.checkpointing import METADATA, abstract, assert_bit_equal, make_state, open_checkpoints

# Orbax's threads may notice that a read has failed only after the error has been raised.
orbax_leftovers = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def saved(tmp_path):
    """A directory with one checkpoint, of step 7."""
    with open_checkpoints(tmp_path / "ck") as checkpoints:
        checkpoints.save(7, make_state(7), metadata=METADATA, tokenizer=b"\x00tok\xff", final=True)
    return tmp_path / "ck"


def test_round_trip(saved):
    state = make_state(7)
    checkpoints = open_checkpoints(saved)
    assert checkpoints.latest() == 7
    assert_bit_equal(checkpoints.restore(7, abstract(state)), state)
    metadata = checkpoints.metadata(7)
    assert metadata["config"] == METADATA["config"]
    assert metadata["format_version"] == 2
    assert metadata["versions"]["jax"] == jax.__version__
    assert checkpoints.tokenizer(7) == b"\x00tok\xff"


def test_metadata_and_tokenizer_are_read_without_the_arrays(saved, monkeypatch):
    """Where one is damaged, Orbax would print tracebacks."""
    monkeypatch.setattr(
        checkpoint_reader.ocp, "checkpointables_metadata", lambda path: pytest.fail("arrays are opened")
    )
    checkpoints = open_checkpoints(saved)
    checkpoints.metadata(7)["config"].clear()
    assert checkpoints.metadata(7)["config"] == METADATA["config"]
    assert checkpoints.tokenizer(7) == b"\x00tok\xff"
    shutil.rmtree(saved)
    with open_checkpoints(saved) as other:
        other.save(7, make_state(7), metadata={**METADATA, "config": {"seed": 3}}, final=True)
    assert checkpoints.metadata(7)["config"] == {"seed": 3}
    with pytest.raises(UserError, match="the checkpoint holds no tokenizer"):
        checkpoints.tokenizer(7)


@orbax_leftovers
def test_parameters_alone(saved):
    state = make_state(7)
    shutil.rmtree(saved / "step_7" / "training" / "d")  # the arrays' data; only what is requested is read
    for weights in ("params", "ema_params"):
        restored = open_checkpoints(saved).restore(7, {weights: abstract(state[weights])})
        assert_bit_equal(restored, {weights: state[weights]})


def test_arrays_may_be_donated_during_a_save(tmp_path):
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}, "step": jnp.int32(1)}
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            expected = jax.tree.map(np.array, state)
            checkpoints.save(step, state, metadata=METADATA)
            for _ in range(3):
                state = bump(state)
            checkpoints.wait()
            assert_bit_equal(checkpoints.restore(step, abstract(state)), expected)


def test_reading_creates_nothing(tmp_path):
    with open_checkpoints(tmp_path / "ck") as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.latest() is None
        assert checkpoints.best() is None
        with pytest.raises(UserError, match=r"step_3: no such checkpoint; there are none"):
            checkpoints.restore(3, {"params": {}})
    assert not (tmp_path / "ck").exists()


def test_nothing_is_printed(tmp_path, capfd):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), metadata=METADATA)
        checkpoints.save(2, make_state(), metadata=METADATA, final=True)
        checkpoints.restore(2, abstract(make_state()))
    assert capfd.readouterr() == ("", "")


# --- which are kept -------------------------------------------------------------------------------------


def save_all(directory, losses, **config):
    """Saves steps 10, 20, ... with the given validation losses (None: not evaluated)."""
    with open_checkpoints(directory, **config) as checkpoints:
        for i, loss in enumerate(losses, 1):
            metrics = None if loss is None else {"val_loss": loss}
            checkpoints.save(
                10 * i, {"params": {"w": jnp.ones(2)}, "step": jnp.int32(0)}, metadata=METADATA, metrics=metrics
            )
    return open_checkpoints(directory, **config)


@pytest.mark.parametrize(
    ("losses", "config", "steps", "best"),
    [
        ([None] * 5, {"keep": 2}, [40, 50], None),
        ([None] * 3, {"keep": 1}, [30], None),
        ([3.0, 2.0, 4.0, 5.0, None], {"keep": 1}, [20, 50], 20),
        ([3.0, 2.0, 1.0, None, None], {"keep": 2}, [30, 40, 50], 30),
        ([None, 2.0, math.nan, math.inf, None], {"keep": 1}, [20, 50], 20),
        ([math.nan, 2.0, None], {"keep": 1}, [20, 30], 20),
        ([1.0, 1.0, 1.0], {"keep": 1}, [10, 30], 10),
        ([None] * 5, {"keep": 1, "every": 10, "keep_every": 20}, [20, 40, 50], None),
    ],
)
def test_keeps_latest_best_and_multiples(tmp_path, losses, config, steps, best):
    checkpoints = save_all(tmp_path, losses, **config)
    assert checkpoints.steps() == steps
    assert checkpoints.best() == best
    assert checkpoints.latest() == steps[-1]
    text = (tmp_path / "index.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    index = json.loads(text)
    assert (index["last"], index["best"]) == (steps[-1], best)


def test_a_resumed_run_keeps_the_best(tmp_path):
    save_all(tmp_path, [1.0, 2.0], keep=1)
    with open_checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.best() == 10
        for step in (30, 40):
            checkpoints.save(
                step,
                {"params": {"w": jnp.ones(2)}, "step": jnp.int32(0)},
                metadata=METADATA,
                metrics={"val_loss": 1.5, "val_ppl": 4.5},
            )
    assert checkpoints.steps() == [10, 40]
    assert checkpoints.best() == 10


def test_a_loss_known_after_the_save_counts(tmp_path):
    state = {"params": {"w": jnp.ones(2)}, "step": jnp.int32(0)}
    with open_checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, metadata=METADATA)
        checkpoints.save(1, state, metadata=METADATA, metrics={"val_loss": 2.0})  # possibly still being written
        checkpoints.save(2, state, metadata=METADATA, final=True)
        assert checkpoints.best() == 1
        checkpoints.save(2, state, metadata=METADATA, metrics={"val_loss": 1.0})
        assert checkpoints.best() == 2
    assert json.loads((tmp_path / "index.json").read_text())["best"] == 2
    assert open_checkpoints(tmp_path).best() == 2


def test_the_index_is_written_during_training(tmp_path):
    """A run that is killed before its next save keeps its best checkpoint."""
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), metadata=METADATA, metrics={"val_loss": 2.0})
        for _ in range(600):
            if open_checkpoints(tmp_path).best() is not None:
                break
            time.sleep(0.1)
        assert open_checkpoints(tmp_path).best() == 1
        assert json.loads((tmp_path / "index.json").read_text())["last"] == 1


def test_the_index_is_written_by_wait_at_the_latest(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_after_commit", lambda *_: None)  # stands for a late thread
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), metadata=METADATA, metrics={"val_loss": 2.0}, final=True)
        assert json.loads((tmp_path / "index.json").read_text())["best"] == 1


def test_saving_a_step_again_changes_nothing(saved):
    with open_checkpoints(saved) as checkpoints:
        checkpoints.save(7, make_state(8), metadata={"config": {}}, final=True)
        assert checkpoints.metadata(7)["config"] == METADATA["config"]
        assert_bit_equal(checkpoints.restore(7, abstract(make_state(7))), make_state(7))


def test_a_checkpoint_being_written_does_not_count(tmp_path):
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (2000, 2000))}, "step": jnp.int32(0)}
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, metadata=METADATA)
        assert checkpoints.steps() == []
        checkpoints.wait()
        assert checkpoints.steps() == [1]


# --- what does not fit ----------------------------------------------------------------------------------


def test_another_architecture_is_reported_as_a_diff(saved):
    state = abstract(make_state(7))
    state["params"]["blocks"]["kernel"] = jax.ShapeDtypeStruct((8, 32), jnp.float32)
    state["params"]["wave"] = state["params"].pop("embed")
    with pytest.raises(UserError) as caught:
        open_checkpoints(saved).restore(7, state)
    assert str(caught.value).split("\n") == [
        f"{saved / 'step_7'}: parameters do not fit the config",
        "  blocks/kernel: is float32[8, 16], must be float32[8, 32]",
        "  embed: is float32[16, 8], which the config does not have",
        "  wave: missing, must be float32[16, 8]",
    ]


def test_another_optimizer_is_reported_as_a_diff(saved):
    state = abstract(make_state(7))
    state["opt_state"] = optax.sgd(1.0, momentum=0.9).init(state["params"]["embed"])
    with pytest.raises(UserError, match=r"step_7: optimizer or other training state do not fit the config\n  opt_stat"):
        open_checkpoints(saved).restore(7, state)


def test_newer_format(saved, monkeypatch):
    monkeypatch.setattr(checkpoint_reader, "FORMAT_VERSION", 1)
    with pytest.raises(UserError, match=r"step_7: has format 2, but this psann_jax reads up to 1"):
        open_checkpoints(saved).restore(7, abstract(make_state(7)))


def test_no_tokenizer(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), metadata=METADATA, final=True)
        with pytest.raises(UserError, match="step_1: the checkpoint holds no tokenizer"):
            checkpoints.tokenizer(1)


# --- what is broken -------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["_CHECKPOINT_METADATA", "params/manifest.ocdbt", "training/_METADATA", "params"])
def test_an_incomplete_checkpoint_is_skipped_and_replaced(saved, missing):
    broken = saved / "step_9"
    shutil.copytree(saved / "step_7", broken)
    shutil.rmtree(broken / missing) if (broken / missing).is_dir() else (broken / missing).unlink()
    with open_checkpoints(saved, keep=1) as checkpoints:
        assert checkpoints.latest() == 7
        checkpoints.save(9, make_state(9), metadata=METADATA, final=True)
        assert checkpoints.steps() == [9]
        assert_bit_equal(checkpoints.restore(9, abstract(make_state(9))), make_state(9))


@pytest.mark.parametrize(
    "pattern", ["params/d/*", "params/_METADATA", "training/manifest.ocdbt", "_CHECKPOINT_METADATA"]
)
@orbax_leftovers
def test_damage_is_named(saved, pattern):
    for part in (saved / "step_7").glob(pattern):
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.raises(UserError, match="step_7: the checkpoint is damaged; remove it") as caught:
        open_checkpoints(saved).restore(7, abstract(make_state(7)))
    assert "\n" not in str(caught.value)


def test_with_an_unreadable_index_no_checkpoint_is_the_best(tmp_path):
    checkpoints = save_all(tmp_path, [1.0, 2.0], keep=2)
    (tmp_path / "index.json").write_text("{")
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.steps() == [10, 20]
    assert checkpoints.best() is None


def test_unwritable_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        open_checkpoints(tmp_path / "file" / "ck") as checkpoints,
        pytest.raises(UserError, match=r"file/ck: cannot write the checkpoint of step 1: Not a directory"),
    ):
        checkpoints.save(1, make_state(), metadata=METADATA)


def test_full_disk_is_named_and_leaves_the_earlier_checkpoints(tmp_path, capfd, caplog):
    """A limit on file sizes stands for a full disk."""
    resource = pytest.importorskip("resource")
    small = {"params": {"w": jnp.ones(2)}, "step": jnp.int32(1)}
    large = {"params": {"w": jax.random.normal(jax.random.key(0), (500_000,))}, "step": jnp.int32(2)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, small, metadata=METADATA, final=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        try:
            with pytest.raises(UserError) as caught:
                checkpoints.save(2, large, metadata=METADATA, final=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(caught.value) == f"{tmp_path}: cannot write the checkpoint of step 2: File too large"
        assert sorted(os.listdir(tmp_path)) == ["index.json", "step_1"]
        assert checkpoints.latest() == 1
        assert_bit_equal(checkpoints.restore(1, abstract(small)), small)
    assert capfd.readouterr() == ("", "")
    # Orbax would log the error about ten times; asyncio may log leftovers of earlier tests.
    assert {record.name for record in caplog.records} <= {"asyncio"}


def test_a_programming_error_is_not_reported_as_a_storage_error(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("not about the disk")

    monkeypatch.setattr(writer.ocp, "save_checkpointables_async", fail)
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="not about the disk"):
        checkpoints.save(1, make_state(), metadata=METADATA)


@pytest.mark.parametrize("state", [{"params": {"w": jnp.ones(2)}}, {"params": {}, "step": jnp.int32(1)}])
def test_a_state_without_parameters_or_step_is_refused(tmp_path, state):
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="at least the step"):
        checkpoints.save(1, state, metadata=METADATA)


def test_a_save_that_another_thread_has_begun_is_waited_for(tmp_path, monkeypatch):
    begun, start = threading.Event(), Checkpoints._start

    def slow(self, *arguments):
        begun.set()
        time.sleep(0.3)
        start(self, *arguments)

    monkeypatch.setattr(Checkpoints, "_start", slow)
    checkpoints = open_checkpoints(tmp_path)
    thread = threading.Thread(target=checkpoints.save, args=(3, make_state()), kwargs={"metadata": METADATA})
    thread.start()
    begun.wait()
    checkpoints.settle()
    assert (tmp_path / "step_3" / "checksums.json").exists()
    thread.join()
