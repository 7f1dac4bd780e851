"""A full disk, a read-only disk, and files damaged by the disk."""

import os
import shutil

import pytest

from tests.support.damage import flip_bit
from tests.support.experiment import Experiment, mounted, saved_steps, unmount


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Experiment(tmp_path_factory.mktemp("experiment"))


def data_file(workdir, step):
    """Returns a file with arrays of a checkpoint."""
    return next((workdir / "checkpoints" / f"step_{step}" / "params" / "d").iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for two checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted("-t", "tmpfs", "-o", "size=900k", "tmpfs", disk)
    yield disk
    unmount(disk)


@pytest.mark.slow
def test_a_full_disk_loses_nothing_and_the_same_command_finishes_the_run(experiment, small_disk):
    workdir = small_disk / "run"
    error = experiment.fails(workdir)
    assert error.startswith(str(workdir))
    assert error.endswith("No space left on device")
    assert saved_steps(workdir)
    assert not (workdir / "summary.json").exists()
    mounted("-o", "remount,size=20m", small_disk)
    assert experiment.finish(workdir)
    experiment.assert_uninterrupted(workdir)


@pytest.mark.slow
def test_damaged_checkpoints_are_named_and_the_run_resumes_from_an_intact_one(experiment, tmp_path):
    workdir = experiment.copy(tmp_path / "run")
    earlier, middle, last = saved_steps(workdir)[-3:]
    truncated, flipped = data_file(workdir, last), data_file(workdir, middle)
    os.truncate(truncated, truncated.stat().st_size // 2)
    flip_bit(flipped)
    shown = experiment.finish(workdir).splitlines()
    for step, path, reason in ((last, truncated, "bytes instead of"), (middle, flipped, "its checksum differs")):
        (line,) = (line for line in shown if line.startswith(f"{workdir / 'checkpoints' / f'step_{step}'}: damaged"))
        assert path.name in line
        assert reason in line
        assert line.endswith(f"; resuming from step {earlier}")
    experiment.assert_uninterrupted(workdir)
    assert saved_steps(workdir)[-2:] == [middle, last]  # intact again


@pytest.mark.slow
def test_a_run_without_an_intact_checkpoint_is_an_error(experiment, tmp_path):
    workdir = experiment.copy(tmp_path / "run")
    for step in saved_steps(workdir):
        flip_bit(data_file(workdir, step))
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    error = experiment.fails(workdir)
    assert error.startswith(f"{workdir / 'checkpoints' / 'step_60'}: damaged (params/d/")
    assert error.endswith(f"or remove {workdir / 'checkpoints'} to start again")
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before
    shutil.rmtree(workdir / "checkpoints")
    experiment.finish(workdir)
    experiment.assert_uninterrupted(workdir)


@pytest.mark.slow
def test_a_damaged_token_shard_is_rebuilt(experiment, tmp_path):
    workdir = experiment.copy(tmp_path / "run")
    for step in saved_steps(workdir)[-2:]:
        shutil.rmtree(workdir / "checkpoints" / f"step_{step}")
    cache = tmp_path / "cache"
    shutil.copytree(experiment.folder / "cache", cache)
    (shard,) = cache.glob("shards-*/*.shard")
    whole = shard.read_bytes()
    flip_bit(shard)
    error = experiment.fails(workdir, f"--config.data.cache_dir={cache}")
    assert error.startswith(f"{shard}: is damaged or missing; start again, which prepares this part")
    shown = experiment.finish(workdir, f"--config.data.cache_dir={cache}")
    assert f"{shard.parent}: files are damaged or missing; preparing them again\n" in shown
    assert shard.read_bytes() == whole
    experiment.assert_uninterrupted(workdir)


@pytest.mark.slow
def test_read_only_data(experiment, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    mounted("--bind", experiment.folder, data)
    try:
        mounted("-o", "remount,bind,ro", data)
        flags = [f"--config.data.sources=('{data / 'text.txt'}',)", "--config.train.steps=2"]
        cache = data / "another"
        error = experiment.fails(tmp_path / "run", *flags, f"--config.data.cache_dir={cache}")
        assert error.startswith(f"{cache}: cannot be written: Read-only file system; ")
        assert not (tmp_path / "run" / "checkpoints").exists()
        experiment.finish(tmp_path / "run", *flags, f"--config.data.cache_dir={tmp_path / 'cache'}")
    finally:
        unmount(data)
