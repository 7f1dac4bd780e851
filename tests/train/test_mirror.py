"""What is where, and when, while a run or a sweep works on the copy of a workdir in a bucket."""

import contextlib
import shutil
import time

import pytest

from psann_jax.train import mirror
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.lease import LEASE
from psann_jax.train.metrics import METRICS
from psann_jax.train.mirror import leased_workdir
from psann_jax.train.remote_checkpoints import RemoteRun
from psann_jax.train.workdir import SUMMARY
from psann_jax.utils.buckets import Bucket
from psann_jax.utils.checksums import CHECKSUMS, find_damage, write_checksums
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import given_location
from tests.support.bucket import bucket_at, s3_bucket
from tests.support.checkpointing import METADATA, make_state, open_checkpoints
from tests.support.damage import replace_content


@pytest.fixture(scope="module")
def server():
    with s3_bucket() as url:
        yield url


@pytest.fixture
def url(server, tmp_path):
    return f"{server}/{tmp_path.name}/run"


@pytest.fixture
def opened(url, tmp_path):
    """Opens the workdir as a process on a machine of that name does."""
    return lambda machine: leased_workdir(given_location(url, "--workdir"), tmp_path / machine)


def checkpoint(workdir, step):
    """Writes what looks like a checkpoint to the file level."""
    root = workdir / "checkpoints" / f"step_{step}"
    for name in (
        "_CHECKPOINT_METADATA",
        *(f"{item}/{n}" for item in ("params", "training") for n in ("_METADATA", "manifest.ocdbt", "d/x")),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name} of {step}")
    write_checksums(root)
    (workdir / "checkpoints" / "index.json").write_text(f'{{"last": {step}}}')


def save_and_end(workdir, step):
    """Writes a checkpoint without checksums, as a process that ends at once leaves it, and returns its directory."""
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(step, make_state(step), metadata=METADATA, final=True)
    (checkpoints.path(step) / CHECKSUMS).unlink()
    return checkpoints.path(step)


def rows(*steps):
    return "".join(f'{{"step": {step}}}\n' for step in steps)


def files(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def fail_to_write(*_):
    raise UserError("s3://somewhere: cannot be written: no network")


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_another_machine_finds_what_it_needs_to_resume(opened, url):
    with opened("a") as workdir:
        for step in (1, 2, 3):
            checkpoint(workdir, step)
        (workdir / METRICS).write_text(rows(1, 2, 3))
        (workdir / "config.json").write_text("{}")
        (workdir / "tensorboard").mkdir()
        (workdir / "tensorboard" / "events").write_text("events")
        (workdir / ".lock").touch()
        (workdir / "half.tmp").touch()
    assert not workdir.exists()
    left = bucket_at(url).files()
    assert {name for name in left if "checkpoints/" not in name} == {METRICS, "config.json", "tensorboard/events"}
    with opened("b") as workdir:
        found = files(workdir)
        assert {METRICS, "config.json", "checkpoints/index.json"} < found
        assert not any(name.startswith("tensorboard") for name in found)
        assert find_damage(workdir / "checkpoints" / "step_3") is None
        for step in (1, 2):
            assert f"checkpoints/step_{step}/params/_METADATA" in found
            assert f"checkpoints/step_{step}/params/d/x" not in found
        shutil.rmtree(workdir / "checkpoints" / "step_1")
        checkpoint(workdir, 4)
    steps = {name.split("/")[1] for name in bucket_at(url).files() if "/step_" in name}
    assert steps == {"step_2", "step_3", "step_4"}
    assert bucket_at(url).read("checkpoints/index.json") == b'{"last": 4}'
    assert bucket_at(url).read("checkpoints/step_2/params/d/x") == b"params/d/x of 2"


def test_a_damaged_checkpoint_is_copied_with_the_one_before(opened, url):
    with opened("a") as workdir:
        for step in (1, 2, 3):
            checkpoint(workdir, step)
    bucket_at(url).write("checkpoints/step_3/training/d/x", b"damaged")
    with opened("b") as workdir:
        damage = [find_damage(workdir / "checkpoints" / f"step_{step}") for step in (1, 2, 3)]
    assert damage[1] is None
    assert "training/d/x" in damage[2]
    assert "params/d/x" in damage[0]


def test_what_an_interrupted_copy_left_is_deleted(opened, url):
    with opened("a") as workdir:
        checkpoint(workdir, 1)
    bucket_at(url).write("checkpoints/step_2/params/d/x", b"half")
    with opened("b") as workdir:
        assert not (workdir / "checkpoints" / "step_2").exists()
        assert bucket_at(url).files("checkpoints/step_2") == {}


def test_files_are_copied_while_the_run_works(opened, url, monkeypatch):
    monkeypatch.setattr(mirror, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(mirror, "_COST_FACTOR", 0)
    with opened("a") as workdir:
        assert bucket_at(url).files().keys() == {LEASE}
        for step in (1, 2):
            (workdir / METRICS).write_text(rows(*range(1, step + 1)))
            checkpoint(workdir, step)
            wait_until(lambda step=step: bucket_at(url).read(f"checkpoints/step_{step}/{CHECKSUMS}"))
            assert bucket_at(url).read(METRICS).decode() == rows(*range(1, step + 1))
        (workdir / METRICS).write_text(rows(1, 2, 3))
        wait_until(lambda: bucket_at(url).read(METRICS).decode() == rows(1, 2, 3))


def test_the_order_of_copies(opened, url, monkeypatch):
    """A row of an evaluation says that its files are there, a checkpoint that its rows are, a summary that all is."""
    written, upload, write = [], Bucket.upload, Bucket.write
    monkeypatch.setattr(mirror, "_POLL_S", 60.0)  # all at the end
    with opened("a") as workdir:
        checkpoint(workdir, 1)
        for name in (METRICS, SUMMARY, "valid_windows.npz"):
            (workdir / name).write_text("content")
        monkeypatch.setattr(Bucket, "upload", lambda self, d, names: (written.extend(names), upload(self, d, names))[1])
        monkeypatch.setattr(Bucket, "write", lambda self, n, c: (written.append(n), write(self, n, c))[1])
    places = [written.index(n) for n in ("valid_windows.npz", METRICS, f"checkpoints/step_1/{CHECKSUMS}", SUMMARY)]
    assert places == sorted(places)
    data = [i for i, name in enumerate(written) if name.endswith("/d/x")]
    assert places[1] < min(data)
    assert max(data) < places[2]


def test_a_second_process_of_this_machine_is_refused(opened, tmp_path):
    with opened("a"):
        with pytest.raises(UserError, match="another process is training in this workdir"), opened("a"):
            pass
        checkpoint(next((tmp_path / "a" / "buckets").glob("*/run")), 1)  # undisturbed
    with opened("a") as workdir:
        assert (workdir / "checkpoints" / "step_1").exists()


def test_a_process_whose_lease_is_gone_writes_nothing_more(opened, url):
    def work():
        with opened("a") as workdir:
            bucket_at(url).write(LEASE, b'{"owner": "other", "host": "other-host"}')
            checkpoint(workdir, 1)

    with pytest.raises(UserError, match=r"was taken over by a process on other-host; nothing more is written"):
        work()
    assert bucket_at(url).files().keys() == {LEASE}


@pytest.fixture
def unfinished(opened, monkeypatch):
    """A copy, on machine "a", with a checkpoint and rows that could not be copied to the bucket."""
    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(opened("a"))
        for name in ("upload", "write", "delete"):
            monkeypatch.setattr(Bucket, name, fail_to_write)
        (workdir / METRICS).write_text(rows(1))
        checkpoint(workdir, 1)
        with pytest.raises(UserError, match=r"no network; the files are in .*/run; the same command on this machine"):
            stack.close()
    monkeypatch.undo()
    return workdir


def test_without_the_bucket_the_files_stay_here(opened, monkeypatch, capsys):
    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(opened("a"))
        monkeypatch.setattr(Bucket, "upload", fail_to_write)
        checkpoint(workdir, 1)
        wait_until(lambda: "trying again" in capsys.readouterr().err)
        with pytest.raises(UserError, match=r"no network; the files are in .*/run; the same command on this machine"):
            stack.close()
    assert find_damage(workdir / "checkpoints" / "step_1") is None


def test_the_next_start_on_this_machine_continues_with_what_was_not_copied(opened, url, unfinished, monkeypatch):
    assert bucket_at(url).files().keys() == {LEASE}
    monkeypatch.setattr(mirror, "_POLL_S", 60.0)  # only what is copied before the run begins
    with opened("a") as workdir:
        assert workdir == unfinished
        assert find_damage(workdir / "checkpoints" / "step_1") is None
        assert bucket_at(url).read(METRICS).decode() == rows(1)
        assert bucket_at(url).read("checkpoints/step_1/params/d/x") == b"params/d/x of 1"
        checkpoint(workdir, 2)
    assert not workdir.exists()
    assert LEASE not in bucket_at(url).files()
    with opened("a") as workdir:
        assert find_damage(workdir / "checkpoints" / "step_2") is None


def test_a_checkpoint_after_which_the_process_ended_at_once_is_copied(opened, url, unfinished):
    save_and_end(unfinished, 2)
    with opened("a"):
        pass
    assert not unfinished.exists()
    with opened("b") as workdir:
        assert (workdir / "checkpoints" / "step_2" / CHECKSUMS).exists()
        assert find_damage(workdir / "checkpoints" / "step_2") is None
        save_and_end(workdir, 3)
    assert f"checkpoints/step_3/{CHECKSUMS}" in bucket_at(url).files()


def test_a_damaged_checkpoint_gets_no_checksums(opened, url, unfinished):
    for array in (save_and_end(unfinished, 2) / "params" / "d").iterdir():
        replace_content(array, b"")
    with opened("a") as workdir:
        found, (damaged,) = CheckpointReader(workdir / "checkpoints").newest_intact()
    assert found == 1
    assert "step_2: damaged (params: cannot be read" in damaged
    assert f"checkpoints/step_2/{CHECKSUMS}" not in bucket_at(url).files()


def test_a_start_that_cannot_copy_what_is_left_keeps_it(opened, url, unfinished, monkeypatch):
    monkeypatch.setattr(Bucket, "upload", fail_to_write)
    with pytest.raises(UserError, match="no network; the files are in"), opened("a"):
        pass
    monkeypatch.undo()
    with opened("a") as workdir:
        assert find_damage(workdir / "checkpoints" / "step_1") is None


def test_what_another_machine_has_written_since_counts(opened, url, unfinished, capsys):
    bucket_at(url).delete([LEASE])  # it would be stale after a minute
    with opened("b") as workdir:
        assert files(workdir) == {".private"}
        checkpoint(workdir, 7)
    with opened("a") as workdir:
        assert not (workdir / "checkpoints" / "step_1").exists()
        assert find_damage(workdir / "checkpoints" / "step_7") is None
    aside = unfinished.with_name("run.aside")
    assert f"the files are in {aside}" in capsys.readouterr().err
    assert find_damage(aside / "checkpoints" / "step_1") is None


def test_what_a_copy_has_lost_is_copied_again_and_stays_in_the_bucket(opened, url, unfinished, monkeypatch):
    """Such as by a program that deletes old files of a cache."""
    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(opened("a"))
        checkpoint(workdir, 2)
        (workdir / "config.json").write_text("{}")
        wait_until(lambda: bucket_at(url).read(f"checkpoints/step_2/{CHECKSUMS}"))
        bucket_at(url).write("config.json", b"{}")
        monkeypatch.setattr(Bucket, "upload", fail_to_write)
        (workdir / "late").write_text("late")
        with pytest.raises(UserError, match="no network; the files"):
            stack.close()
    monkeypatch.undo()
    shutil.rmtree(workdir / "checkpoints" / "step_1")
    (workdir / "checkpoints" / "step_2" / "training" / "d" / "x").unlink()
    (workdir / "config.json").unlink()
    with opened("a") as workdir:
        assert find_damage(workdir / "checkpoints" / "step_2") is None
        assert {"config.json", "checkpoints/step_1/_CHECKPOINT_METADATA"} < files(workdir)
    left = bucket_at(url).files()
    assert {f"checkpoints/step_{step}/training/d/x" for step in (1, 2)} | {"late", "config.json"} < left.keys()


def test_an_error_of_the_run_does_not_lose_its_files(opened, url):
    def work():
        with opened("a") as workdir:
            checkpoint(workdir, 1)
            raise UserError("too many bad steps")

    with pytest.raises(UserError, match="too many bad steps"):
        work()
    assert f"checkpoints/step_1/{CHECKSUMS}" in bucket_at(url).files()


def test_the_runs_of_a_sweep_have_their_checkpoints(opened, url):
    with opened("a") as workdir:
        for run in ("runs/x", "runs/y"):
            checkpoint(workdir / run, 1)
            checkpoint(workdir / run, 2)
            (workdir / run / METRICS).write_text(rows(1, 2))
        (workdir / "report.md").write_text("report")
    with opened("b") as workdir:
        assert {"report.md", f"runs/x/{METRICS}", f"runs/y/{METRICS}"} < files(workdir)
        for run in ("runs/x", "runs/y"):
            assert find_damage(workdir / run / "checkpoints" / "step_2") is None
            assert find_damage(workdir / run / "checkpoints" / "step_1") is not None
        shutil.rmtree(workdir / "runs/x/checkpoints/step_1")
    steps = {name.split("/params")[0] for name in bucket_at(url).files() if name.endswith("params/d/x")}
    assert steps == {f"runs/{run}/checkpoints/step_{step}" for run, step in (("x", 2), ("y", 1), ("y", 2))}


def test_a_reader_copies_one_checkpoint_without_its_training_state(opened, url, tmp_path):
    with opened("a") as workdir:
        checkpoint(workdir, 1)
        checkpoint(workdir, 2)
    run = RemoteRun(given_location(url, "workdir"), tmp_path / "copy")
    run.pull(1)
    found = {name for name in files(tmp_path / "copy") if name.endswith("/d/x")}
    assert found == {"checkpoints/step_1/params/d/x"}
    assert files(tmp_path / "copy") >= {f"checkpoints/step_{step}/_CHECKPOINT_METADATA" for step in (1, 2)}
