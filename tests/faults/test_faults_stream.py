"""A run on a stream that is stopped and killed."""

import pytest

from tests.support.experiment import Experiment, recorded_step, saved_steps, wait_for_step
from tests.support.tiny import write_parts


@pytest.mark.slow
def test_a_run_that_is_stopped_and_killed_continues_bit_for_bit(tmp_path):
    texts = write_parts(tmp_path / "texts")
    experiment = Experiment(
        tmp_path,
        f"--config.data.sources={texts}/part-*.jsonl",
        f"--config.data.valid_sources={texts}/valid.jsonl",
        "--config.data.stream=True",
        "--config.data.shuffle_buffer=24",
    )
    workdir = tmp_path / "run"
    process = experiment.start(workdir)
    wait_for_step(workdir, 13, process)
    process.terminate()
    process.communicate()
    assert saved_steps(workdir)[-1] == recorded_step(workdir)
    process = experiment.start(workdir, "--config.data.num_workers=3")
    wait_for_step(workdir, 32, process)
    process.kill()
    process.communicate()
    experiment.finish(workdir)
    experiment.assert_uninterrupted(workdir)
