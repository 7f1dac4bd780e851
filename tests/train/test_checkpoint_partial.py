"""Partial checkpoints, as kills, copies and full disks leave them: cleared, and never in the way."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from psann_jax.train import checkpoint_deletion
from psann_jax.train.checkpoint_deletion import delete
from psann_jax.utils.checksums import CHECKSUMS
from psann_jax.utils.errors import UserError
from tests.support.checkpointing import METADATA, abstract, assert_bit_equal, make_state, open_checkpoints
from tests.support.processes import environment


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A directory with the checkpoint of step 7, not to be changed."""
    directory = tmp_path_factory.mktemp("one")
    with open_checkpoints(directory) as checkpoints:
        checkpoints.save(7, make_state(7), metadata=METADATA, tokenizer=b"tok", final=True)
    return directory


@pytest.fixture
def saved(one, tmp_path):
    """A copy of that directory."""
    return shutil.copytree(one, tmp_path / "checkpoints")


def without(*names):
    def make(path):
        shutil.copytree(path.parent / "step_7", path)
        for name in names:
            shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()

    return make


PARTIAL = {
    "no metadata": without("_CHECKPOINT_METADATA"),
    "no parameters": without("params"),
    "no EMA parameters": without("ema_params", CHECKSUMS),
    "no tokenizer": without("tokenizer/manifest.ocdbt", CHECKSUMS),
    "no manifest": without("training/manifest.ocdbt"),
    "empty": lambda path: path.mkdir(),
    "file": lambda path: path.write_text("x"),
    "empty file": lambda path: path.touch(),
    "file for an item": lambda path: (without("params")(path), (path / "params").write_text("x")),
    "broken link": lambda path: path.symlink_to("nowhere"),
}
TEMPORARY = ("step_{}.orbax-checkpoint-tmp", "step_{}.orbax-checkpoint-tmp-1795660538", "step_{}.deleted-0a1b2c3d")


@pytest.mark.parametrize("kind", PARTIAL)
@pytest.mark.parametrize("step", [pytest.param(5, marks=pytest.mark.slow), 9])
def test_a_partial_checkpoint_is_in_nobodys_way(saved, kind, step):
    """Step 5 is what a deletion leaves; step 9 is the step that the run will save next."""
    PARTIAL[kind](saved / f"step_{step}")
    with open_checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [7]
        assert checkpoints.newest_intact() == (7, [])
        assert_bit_equal(checkpoints.restore(7, abstract(make_state(7))), make_state(7))
        checkpoints.save(9, make_state(9), metadata=METADATA)
        checkpoints.save(11, make_state(11), metadata=METADATA)
    assert sorted(os.listdir(saved)) == ["index.json", "step_11", "step_9"]
    assert_bit_equal(open_checkpoints(saved).restore(9, abstract(make_state(9))), make_state(9))


@pytest.mark.parametrize("kind", PARTIAL)
def test_partial_checkpoints_are_cleared_and_named_at_the_start(saved, kind):
    PARTIAL[kind](saved / "step_9")
    assert open_checkpoints(saved).clear_partial() == [f"{saved / 'step_9'}: incomplete; deleted"]
    assert sorted(os.listdir(saved)) == ["index.json", "step_7"]


@pytest.mark.parametrize("name", TEMPORARY)
@pytest.mark.parametrize("step", [0, 7, 9])
def test_temporary_directories_are_cleared_at_the_start_and_by_a_save(saved, name, step):
    path = saved / name.format(step)
    shutil.copytree(saved / "step_7", path)
    (saved / "index.json.123.tmp").write_text("{")
    assert open_checkpoints(saved).clear_partial() == []
    assert sorted(os.listdir(saved)) == ["index.json", "step_7"]
    path.write_text("a file")
    with open_checkpoints(saved) as checkpoints:
        checkpoints.save(9, make_state(9), metadata=METADATA)
    assert sorted(os.listdir(saved)) == ["index.json", "step_7", "step_9"]


def test_leftovers_of_the_first_save(tmp_path):
    (tmp_path / "step_0.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    (tmp_path / "step_0").mkdir()
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_intact() == (None, [])
        checkpoints.save(0, make_state(0), metadata=METADATA)
    assert sorted(os.listdir(tmp_path)) == ["index.json", "step_0"]


def test_other_files_and_links_to_checkpoints_stay(saved, tmp_path):
    shutil.move(saved / "step_7", tmp_path / "elsewhere")
    (saved / "step_7").symlink_to(tmp_path / "elsewhere")
    for name in ("step_5.bak", "step_five", "my_step_5", "notes.tmp"):
        (saved / name).mkdir()
    checkpoints = open_checkpoints(saved)
    assert checkpoints.clear_partial() == []
    assert checkpoints.steps() == [7]
    with checkpoints:
        checkpoints.save(9, make_state(9), metadata=METADATA)
    assert sorted(os.listdir(saved)) == [
        "index.json", "my_step_5", "notes.tmp", "step_5.bak", "step_7", "step_9", "step_five",
    ]  # fmt: skip


def test_what_cannot_be_examined_is_not_deleted(saved, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint_deletion, "missing_files", denied)
    assert open_checkpoints(saved).clear_partial() == []
    assert (saved / "step_7").exists()


def test_a_loop_of_links_is_replaced(saved):
    (saved / "step_9").symlink_to("step_9")
    with open_checkpoints(saved) as checkpoints:
        assert checkpoints.newest_intact() == (7, [])
        checkpoints.save(9, make_state(9), metadata=METADATA, final=True)
        assert checkpoints.newest_intact() == (9, [])


def test_a_file_in_place_of_the_directory_is_an_error_at_the_start(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="checkpoints: is a file, must be the directory of the checkpoints"):
        open_checkpoints(tmp_path / "checkpoints").clear_partial()


# --- copied without checksums ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: shutil.rmtree(path / "training" / "d"),
        lambda path: next((path / "params" / "d").iterdir()).write_bytes(b"x"),
        lambda path: (path / "params" / "_METADATA").write_bytes(b""),
        lambda path: (path / "_CHECKPOINT_METADATA").write_bytes(b"{"),
    ],
)
def test_a_half_copied_checkpoint_without_checksums_is_skipped(saved, damage):
    """It has all files that show a checkpoint to be complete, so it counts as damaged."""
    without(CHECKSUMS)(saved / "step_9")
    damage(saved / "step_9")
    with open_checkpoints(saved, keep=2) as checkpoints:
        found, (line,) = checkpoints.newest_intact()
        assert found == 7
        assert line.startswith(f"{saved / 'step_9'}: damaged (")
        assert ": cannot be read: " in line
        assert_bit_equal(checkpoints.restore(7, abstract(make_state(7))), make_state(7))
        checkpoints.save(9, make_state(9), metadata=METADATA, final=True)
        assert checkpoints.newest_intact() == (9, [])


def test_a_whole_checkpoint_without_checksums_is_intact(saved):
    without(CHECKSUMS)(saved / "step_9")
    assert open_checkpoints(saved).newest_intact() == (9, [])


# --- killed during deletion -----------------------------------------------------------------------------

DELETE = """
import os, signal, sys
from pathlib import Path
from psann_jax.train.checkpoint_deletion import delete
remaining = int(sys.argv[2])
unlink = os.unlink
def killed(*args, **kwargs):
    global remaining
    remaining -= 1
    if remaining < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    unlink(*args, **kwargs)
os.unlink = killed
delete(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("files", [0, 1, 10])
def test_a_kill_during_a_deletion_leaves_nothing_under_the_name(saved, files):
    shutil.copytree(saved / "step_7", saved / "step_5")
    command = [sys.executable, "-c", DELETE, str(saved / "step_5"), str(files)]
    assert subprocess.run(command, env=environment(), timeout=120).returncode == -signal.SIGKILL
    names = sorted(os.listdir(saved))
    assert names[0] == "index.json"
    assert names[1].startswith("step_5.deleted-")
    assert names[2:] == ["step_7"]
    with open_checkpoints(saved) as checkpoints:
        assert checkpoints.clear_partial() == []
        assert sorted(os.listdir(saved)) == ["index.json", "step_7"]


def test_deleting_what_is_gone_is_no_error(tmp_path):
    delete(tmp_path / "step_5")


def test_the_index_lists_what_is_left(saved):
    with open_checkpoints(saved, keep=1) as checkpoints:
        checkpoints.save(9, make_state(9), metadata=METADATA, metrics={"val_loss": 1.0})
    assert json.loads((saved / "index.json").read_text()) == {"last": 9, "best": 9, "metrics": {"9": {"val_loss": 1.0}}}
