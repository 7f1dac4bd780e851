"""Preparing a text on the nodes of a Ray cluster: the same files, whichever node dies and whatever interrupts it."""

import dataclasses
import gzip
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from psann_jax.config import DataConfig
from psann_jax.data import nodes, piece_task, preparation
from psann_jax.data.corpus import Corpus
from psann_jax.data.preparation import prepare
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.engines.local import LocalEngine
from psann_jax.engines.place import STOPPED, Place
from psann_jax.utils.errors import UserError
from tests.support.processes import TESTS, environment
from tests.support.ray_nodes import kill_node, two_nodes
from tests.support.tiny import sentences, write_text


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A file of many pieces, and a compressed one."""
    monkeypatch.setattr(preparation, "PIECE_BYTES", 2000)
    write_text(tmp_path / "0.txt", n_lines=300)
    (tmp_path / "1.txt.gz").write_bytes(gzip.compress("\n".join(sentences(300, 1)).encode()))
    sources = (str(tmp_path / "0.txt"), str(tmp_path / "1.txt.gz"))
    return Corpus(DataConfig(sources=sources, valid_fraction=0.2), progress=False)


@pytest.fixture
def tasks(corpus, tmp_path):
    """The tasks of the corpus, and the file of their tokenizer."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / nodes._TOKENIZER).write_bytes(byte_tokenizer().to_bytes())
    pieces = corpus.pieces(2000)
    return [piece_task.PieceTask(i, piece, b"", tmp_path / "shards", 2000) for i, piece in enumerate(pieces)]


def do(task, **place):
    return nodes._prepare(task, task.directory / nodes._TOKENIZER, Place(**place))


def files(cache):
    """Returns the files of the only prepared text of a cache."""
    (entry,) = cache.glob("shards-*/")
    return {path.name: path.read_bytes() for path in entry.iterdir()}


def run_with(engine):
    def run(tasks, progress):
        nodes._run(lambda folder: engine, tasks, progress)

    return run


class Progress:
    """Counts what a progress bar is given."""

    def __init__(self):
        self.n_bytes = self.n_tokens = 0

    def add(self, n_bytes, n_tokens):
        self.n_bytes, self.n_tokens = self.n_bytes + n_bytes, self.n_tokens + n_tokens


# --- without a cluster ----------------------------------------------------------------------------------


def test_jobs_of_an_engine_write_the_same_files(corpus, tmp_path):
    prepare(corpus, byte_tokenizer(), tmp_path / "one", progress=False)
    prepare(corpus, byte_tokenizer(), tmp_path / "nodes", progress=False, run=run_with(LocalEngine()))
    assert files(tmp_path / "nodes") == files(tmp_path / "one")
    assert len(files(tmp_path / "one")) > 10


def test_the_progress_is_that_of_one_process(tasks, tmp_path):
    """Also if a part of a piece is there already: its text counts, and its tokens do not."""
    *_, compressed = tasks
    assert do(compressed) is None
    shards = sorted(tmp_path.glob(f"shards/{compressed.number:06d}-*.shard"))
    assert len(shards) > 2
    for path in shards[1:]:
        path.unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / shards[0].name).write_bytes(shards[0].read_bytes())
    data = byte_tokenizer().to_bytes()
    here, there = Progress(), Progress()
    preparation.run_here([dataclasses.replace(t, tokenizer=data, directory=tmp_path / "other") for t in tasks], here)
    run_with(LocalEngine())([dataclasses.replace(t, tokenizer=data) for t in tasks], there)
    assert (there.n_bytes, there.n_tokens) == (here.n_bytes, here.n_tokens)


def test_a_node_that_does_not_see_a_file_is_named(tasks, corpus, tmp_path):
    (tmp_path / "1.txt.gz").unlink()
    host = socket.gethostname()
    assert do(tasks[-1]) == f"on {host}: {tmp_path / '1.txt.gz'}: cannot be read: No such file or directory"
    engine = run_with(LocalEngine())
    os.utime(tmp_path / "0.txt", (1, 1))
    with pytest.raises(UserError, match=rf"^piece 0: on {host}: .*0\.txt: changed while it was read; start again$"):
        prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False, run=engine)
    (entry,) = (tmp_path / "cache").glob("shards-*/")
    assert list(entry.iterdir()) == []


def test_a_node_that_cannot_write_is_named(tasks, tmp_path):
    task = dataclasses.replace(tasks[0], directory=tmp_path / "none")
    error = nodes._prepare(task, tasks[0].directory / nodes._TOKENIZER, Place())
    assert error == (
        f"on {socket.gethostname()}: {task.path(0)}: cannot be written: No such file or directory; free some space or "
        "set data.cache_dir to another directory"
    )


def test_a_piece_that_is_to_stop_keeps_its_finished_files(tasks, monkeypatch):
    monkeypatch.setattr(piece_task, "_BATCH_CHARACTERS", 1)
    stops = iter([False] * 200 + [True])
    assert do(tasks[-1], stopping=lambda: next(stops)) == STOPPED
    n = len(tasks[-1].written())
    assert n > 1
    assert not tasks[-1].is_done()
    kept = {task_path: task_path.read_bytes() for task_path in map(tasks[-1].path, range(n))}
    assert do(tasks[-1]) is None
    assert tasks[-1].is_done()
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_a_job_uses_as_many_threads_as_it_has_cores(tasks, monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "9")
    assert do(tasks[0], environment={"RAYON_NUM_THREADS": "3"}) is None
    assert os.environ["RAYON_NUM_THREADS"] == "3"


def test_files_that_no_machine_has_written_are_not_left_out(corpus, tmp_path):
    with pytest.raises(UserError, match=r"000000-0000\.shard: was prepared, but is missing or damaged; start again$"):
        prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False, run=lambda tasks, progress: None)
    assert files(tmp_path / "cache") == {}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sources": ("builtin:python",)}, "builtin:python, of which each node has its own copy; or it has to be in"),
        ({"valid_sources": ("hf:a/b",)}, "hf:a/b, of which each node has its own copy; or name its .parquet files"),
    ],
)
def test_sources_of_which_nodes_have_copies_are_refused(tmp_path, settings, named):
    config = DataConfig(**{"sources": (str(tmp_path / "a.txt"),), **settings})
    with pytest.raises(UserError, match=rf"^--engine: must be local with {named}"):
        nodes.run_on_nodes(config, None, 1)


# --- with a real cluster --------------------------------------------------------------------------------

CONFIG = """
from psann_jax.config.io import default_config
def get_config():
    config = default_config("waveresnet")
    config.data.update(sources=("text.txt",), valid_fraction=0.1, max_length=32, cache_dir="cache")
    config.data.tokenizer.kind = "bytes"
    config.train.batch_tokens = 256
    return config
"""
SMALL = """
import sys
from psann_jax.data import preparation
preparation.PIECE_BYTES = 2000
if __name__ == "__main__":
    from psann_jax.cli.program import run_program
    run_program(["prepare", "--config=config.py", *sys.argv[1:]])
"""


@pytest.fixture
def cluster(monkeypatch):
    with two_nodes(monkeypatch) as found:
        yield found


@pytest.fixture
def start(default_signals, tmp_path):
    """Starts the command in tmp_path, where the paths of the config are relative."""
    write_text(tmp_path / "text.txt", n_lines=20_000)
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "small.py").write_text(SMALL)
    started = []

    def run(*flags):
        paths = f"{TESTS.parent}:{os.environ.get('PYTHONPATH', '')}"
        started.append(
            subprocess.Popen(
                [sys.executable, str(tmp_path / "small.py"), *flags],
                env={**environment(), "PYTHONPATH": paths},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def shards(tmp_path):
    return sorted(tmp_path.glob("cache/shards-*/*.shard"))


def wait_for_some(tmp_path, process):
    """Waits until nodes are at work, and returns the files that are finished."""
    while len(shards(tmp_path)) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return {path: path.stat().st_mtime_ns for path in shards(tmp_path)}


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["node", "command", "SIGTERM"])
def test_whatever_is_killed_the_files_are_the_same(cluster, start, tmp_path, killed):
    flags = ("--engine=ray", f"--address={cluster.address}")
    process = start(*flags)
    before = wait_for_some(tmp_path, process)
    if killed == "node":
        kill_node(cluster, cluster.two[0], lambda process: "ray::" in " ".join(process.cmdline()))
    else:
        process.kill() if killed == "command" else process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if killed == "command" else 143), errors
        assert ("SIGTERM received: waiting for all nodes to stop\n" in errors) == (killed == "SIGTERM")
        process = start(*flags)
    output = finish(process)
    assert "Ray: " in output
    assert "; each piece uses 1 CPUs and 0 GPUs\n" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished files are not written again"
    found = files(tmp_path / "cache")
    assert len(found) > 300
    (tmp_path / "cache").rename(tmp_path / "first")
    finish(start("--jobs=1"))
    assert files(tmp_path / "cache") == found
