"""The threads of a stream end with its batches and with the program."""

import gc
import subprocess
import sys
import threading

import pytest

from tests.data.test_streamed_text import open_stream_text, take

UNCLOSED = """
import sys
from psann_jax.data.streamed_text import open_text
from tests.data.test_streamed_text import config
from pathlib import Path
text = open_text(config(Path(sys.argv[1]), shuffle_buffer=100_000), progress=False)
batches = text.train_batches(seed=0, batch_size=4)
if sys.argv[2] == "started":
    batches._batches[0].start_prefetch()
else:
    text = open_text(config(Path(sys.argv[1])), progress=False)
    batches = text.train_batches(seed=0, batch_size=4)
    next(batches)
print("end")
"""


@pytest.mark.parametrize("how", ["started", "used"])
def test_a_program_ends_while_threads_read(tmp_path, how):
    done = subprocess.run(
        [sys.executable, "-c", UNCLOSED, str(tmp_path), how], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_deleting_the_text_stops_the_threads(tmp_path):
    before = threading.active_count()
    text = open_stream_text(tmp_path)
    take(text, 2)
    assert threading.active_count() > before
    del text
    gc.collect()
    assert threading.active_count() == before
