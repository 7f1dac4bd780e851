"""Several processes on one stream: each reads other files, and each continues from its own state."""

import json

import pytest

from psann_jax.train.checkpoint_reader import CheckpointReader
from tests.multi_device.test_several_processes import losses
from tests.support.processes import run_script
from tests.support.tiny import sentences

WHOLE, STOPPED_AT = -1, 5


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("streams")
    for name, seed in [*((f"part-{i}", i) for i in range(4)), ("valid", 9)]:
        lines = (json.dumps({"text": f"{name} {text}"}) + "\n" for text in sentences(30, seed))
        (directory / f"{name}.jsonl").write_text("".join(lines))
    return directory


def train(texts, workdir, stop, processes, *mesh):
    run_script("multi_device/streams.py", texts, workdir, stop, *mesh, processes=processes)


def files_read(workdir, process):
    """Returns the names of the files that a process read in its first documents, in order."""
    lines = (workdir / f"read_{process}.txt").read_text().split("\n")
    return list(dict.fromkeys(line.split()[0] for line in lines[:50]))


@pytest.mark.slow
def test_two_processes_read_different_files_and_continue_exactly(texts, tmp_path):
    train(texts, tmp_path / "whole", WHOLE, 2)
    assert not set(files_read(tmp_path / "whole", 0)) & set(files_read(tmp_path / "whole", 1))
    train(texts, tmp_path / "run", STOPPED_AT, 2)
    states = CheckpointReader(tmp_path / "run" / "checkpoints").metadata(STOPPED_AT)["streams"]
    assert [(state["reader"], state["n_readers"]) for state in states] == [(0, 2), (1, 2)]
    train(texts, tmp_path / "run", WHOLE, 2)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_processes_that_share_rows_read_the_same_files(texts, tmp_path):
    train(texts, tmp_path / "run", STOPPED_AT, 2, "data=1", "tensor=2")
    reads = [(tmp_path / "run" / f"read_{i}.txt").read_text() for i in (0, 1)]
    assert files_read(tmp_path / "run", 0) == files_read(tmp_path / "run", 1)
    assert reads[0][:500] == reads[1][:500]
    states = CheckpointReader(tmp_path / "run" / "checkpoints").metadata(STOPPED_AT)["streams"]
    assert states[0] == states[1]
