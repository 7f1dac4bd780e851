"""Damaged checkpoints: found, named, skipped and replaced."""

import json
import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.train import checkpoint_reader
from psann_jax.train import checkpoints as writer
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.utils.checksums import CHECKSUMS, find_damage
from psann_jax.utils.errors import UserError
from tests.support.checkpointing import (
    METADATA,
    abstract,
    assert_bit_equal,
    make_state,
    open_checkpoints,
    run_python,
)
from tests.support.damage import flip_bit


@pytest.fixture
def saved(tmp_path):
    """A directory with the checkpoints of steps 1, 2 and 3."""
    with open_checkpoints(tmp_path / "ck", keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), metadata=METADATA, tokenizer=b"tok")
    return tmp_path / "ck"


def files(step_directory):
    return sorted(p for p in step_directory.rglob("*") if p.is_file())


def damage(saved, step):
    """Flips a bit in the arrays of a checkpoint and returns the name of the file within it."""
    path = next((saved / f"step_{step}" / "params" / "d").iterdir())
    flip_bit(path)
    return path.relative_to(saved / f"step_{step}").as_posix()


# --- checksums of checkpoints ---------------------------------------------------------------------------


def test_every_file_of_a_checkpoint_is_covered(saved):
    names = {p.relative_to(saved / "step_3").as_posix() for p in files(saved / "step_3")}
    assert set(json.loads((saved / "step_3" / CHECKSUMS).read_text())) == names - {CHECKSUMS}
    for path in files(saved / "step_3"):
        if path.stat().st_size:
            content = path.read_bytes()
            flip_bit(path)
            assert find_damage(saved / "step_3") is not None, path
            path.write_bytes(content)
    assert find_damage(saved / "step_3") is None


def test_written_in_the_background(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, make_state(), metadata=METADATA)
    checkpoints._response.result()
    for _ in range(600):
        if (tmp_path / "step_1" / CHECKSUMS).exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("no checksums before the wait")
    checkpoints.close()


def test_written_by_the_wait_at_the_latest(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_after_commit", lambda *_: None)  # stands for a late thread
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), metadata=METADATA, final=True)
        assert (tmp_path / "step_1" / CHECKSUMS).exists()


def test_no_space_for_the_checksums_is_an_error_but_the_checkpoint_counts(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "add_checksums", full)
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"cannot write the checkpoint of step 1: No space left on device$"),
    ):
        checkpoints.save(1, make_state(1), metadata=METADATA, final=True)
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.newest_intact() == (1, [])
    assert_bit_equal(checkpoints.restore(1, abstract(make_state(1))), make_state(1))


def test_a_flipped_bit_in_any_file_stops_restoring(saved):
    """Also in files where Orbax itself may not notice."""
    state = abstract(make_state(3))
    for path in files(saved / "step_3"):
        name = path.relative_to(saved / "step_3").as_posix()
        if not path.stat().st_size or name.startswith(("tokenizer", CHECKSUMS)):
            continue
        content = path.read_bytes()
        flip_bit(path)
        with pytest.raises(UserError, match=r"step_3: the checkpoint is damaged; remove it .*\(.*: .*\)$") as caught:
            open_checkpoints(saved).restore(3, state)
        assert "\n" not in str(caught.value)
        path.write_bytes(content)
    assert_bit_equal(open_checkpoints(saved).restore(3, state), make_state(3))


def test_a_damaged_tokenizer_affects_only_the_tokenizer(saved):
    flip_bit(next((saved / "step_3" / "tokenizer" / "d").iterdir()))
    checkpoints = open_checkpoints(saved)
    with pytest.raises(UserError, match=r"step_3: the checkpoint is damaged; .*\(tokenizer/d/.*: its checksum differs"):
        checkpoints.tokenizer(3)
    assert_bit_equal(checkpoints.restore(3, abstract(make_state(3))), make_state(3))


def test_changed_metadata_are_detected(saved):
    path = saved / "step_3" / "_CHECKPOINT_METADATA"
    path.write_bytes(path.read_bytes().replace(b"waveresnet", b"waveresnft"))
    with pytest.raises(UserError, match=r"step_3: .*damaged; .*\(_CHECKPOINT_METADATA: its checksum differs\)$"):
        open_checkpoints(saved).metadata(3)


# --- the newest intact checkpoint -----------------------------------------------------------------------


def test_no_checkpoint_and_an_intact_one(tmp_path, saved):
    assert open_checkpoints(tmp_path / "new").newest_intact() == (None, [])
    checkpoints = open_checkpoints(saved)
    assert checkpoints.newest_intact() == (3, [])
    assert checkpoints.latest() == 3


def test_damaged_checkpoints_are_skipped_and_named(saved):
    names = {step: damage(saved, step) for step in (2, 3)}
    checkpoints = open_checkpoints(saved, keep=3)
    assert checkpoints.newest_intact() == (
        1,
        [
            f"{saved / 'step_3'}: damaged ({names[3]}: its checksum differs); resuming from step 1",
            f"{saved / 'step_2'}: damaged ({names[2]}: its checksum differs); resuming from step 1",
        ],
    )
    assert checkpoints.latest() == 1
    assert checkpoints.steps() == [1]
    assert checkpoints.steps_to_keep([1, 2, 3]) == {1}
    assert sorted(os.listdir(saved)) == ["index.json", "step_1", "step_2", "step_3"]  # nothing is deleted yet
    assert_bit_equal(checkpoints.restore(1, abstract(make_state(1))), make_state(1))


def test_saving_the_same_step_replaces_a_damaged_checkpoint(saved):
    damage(saved, 3)
    with open_checkpoints(saved, keep=3) as checkpoints:
        assert checkpoints.newest_intact()[0] == 2
        checkpoints.save(3, make_state(3), metadata=METADATA, final=True)
        assert checkpoints.latest() == 3
        assert_bit_equal(checkpoints.restore(3, abstract(make_state(3))), make_state(3))
    assert open_checkpoints(saved).newest_intact() == (3, [])


def test_damaged_checkpoints_do_not_count_among_those_to_keep(saved):
    damage(saved, 3)
    with open_checkpoints(saved, keep=2) as checkpoints:
        checkpoints._index.record(3, {"val_loss": 0.0})  # it was also the best
        assert checkpoints.newest_intact()[0] == 2
        checkpoints.save(5, make_state(5), metadata=METADATA, final=True)
        assert checkpoints.steps() == [2, 5]
        assert checkpoints.best() is None
    assert sorted(os.listdir(saved)) == ["index.json", "step_2", "step_5"]
    assert json.loads((saved / "index.json").read_text())["last"] == 5


def test_an_earlier_step_can_be_saved_while_a_later_one_is_damaged(saved):
    """A run that resumes from step 1 with other settings may save at 2 before it reaches 3."""
    damage(saved, 3)
    shutil.rmtree(saved / "step_2")
    with open_checkpoints(saved, keep=3) as checkpoints:
        assert checkpoints.newest_intact()[0] == 1
        checkpoints.save(2, make_state(2), metadata=METADATA, final=True)
        assert checkpoints.steps() == [1, 2]
        checkpoints.save(3, make_state(3), metadata=METADATA, final=True)
    assert open_checkpoints(saved).newest_intact() == (3, [])
    assert open_checkpoints(saved).steps() == [1, 2, 3]


def test_all_checkpoints_damaged(saved):
    name = {step: damage(saved, step) for step in (1, 2, 3)}[3]
    with pytest.raises(UserError) as caught:
        open_checkpoints(saved).newest_intact()
    assert str(caught.value) == (
        f"{saved / 'step_3'}: damaged ({name}: its checksum differs), and so are all before it; "
        f"restore an intact one from a copy, or remove {saved} to start again"
    )
    shutil.rmtree(saved / "step_1")
    shutil.rmtree(saved / "step_2")
    with pytest.raises(UserError, match=r"step_3: damaged \(.*\); there is no other; restore an intact one"):
        open_checkpoints(saved).newest_intact()


def test_files_are_read_once(saved, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoint_reader, "find_damage", lambda path, parts=None: read.append(path.name))
    checkpoints = open_checkpoints(saved)
    checkpoints.newest_intact()
    assert read == ["step_3"]
    checkpoints.restore(3, abstract(make_state(3)))
    assert read.count("step_3") == 2  # the second time only the files outside the items


TWO_PROCESSES = """
import sys
import jax, jax.numpy as jnp
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from psann_jax.config import CheckpointConfig
from psann_jax.utils.errors import UserError
from psann_jax.train import checkpoint_reader as module
from psann_jax.train.checkpoints import Checkpoints
from tests.support.damage import flip_bit

if jax.process_index():
    verify = module.find_damage
    module.find_damage = lambda path, parts=None: verify(path, parts) if parts == () else sys.exit("read by another")
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,))
shardings = {"params": {"w": NamedSharding(mesh, P("fsdp"))}, "step": NamedSharding(mesh, P())}
make = lambda: {"params": {"w": jnp.arange(32.0).reshape(8, 4)}, "step": jnp.int32(0)}
state = jax.jit(make, out_shardings=shardings)()
abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
with Checkpoints(sys.argv[1], CheckpointConfig(keep=2)) as checkpoints:
    found, lines = checkpoints.newest_intact()
    print(found, len(lines), checkpoints.steps())
    checkpoints.restore(1, abstract)
    checkpoints.save(2, state, metadata={}, final=True)
    print(checkpoints.steps(), checkpoints.newest_intact())
"""


def test_one_of_two_processes_verifies_for_both(tmp_path):
    state = {"params": {"w": jnp.arange(32.0).reshape(8, 4)}, "step": jnp.int32(0)}
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, metadata=METADATA)
    damage(tmp_path, 2)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda i: run_python(TWO_PROCESSES, tmp_path, port, i), range(2)))
    for result in results:
        assert result.stdout.splitlines()[-2:] == ["1 1 [1]", "[1, 2] (2, [])"], result.stderr
    restored = open_checkpoints(tmp_path).restore(2, abstract({"params": state["params"]}))
    np.testing.assert_array_equal(restored["params"]["w"], state["params"]["w"])
