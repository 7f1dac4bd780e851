"""Several processes end together: after a failure of one, with one line and code 2, and after a signal."""

import subprocess
import sys

import pytest

from tests.support.processes import TESTS, environment, run_script, several


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_of_one_process_ends_all_of_them(tmp_path, failing):
    command = [*several(3), sys.executable, str(TESTS / "multi_device" / "ends.py"), str(tmp_path), str(failing)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    lines = [f"process {i} of 3 ended with code 2" for i in range(3)]
    lines += (
        ["error: x.txt: is damaged"]
        if failing == 0
        else [
            "error: process 1: x.txt: is damaged",
            "[1] error: x.txt: is damaged",
        ]
    )
    assert sorted(done.stderr.splitlines()) == sorted(lines)
    assert {path.name for path in tmp_path.iterdir()} == {f"saved_{i}" for i in range(3) if i != failing}


def test_a_signal_before_the_first_update_of_a_resumed_run_stops_it():
    assert run_script("multi_device/preempted.py", processes=2).split() == ["stopped", "101"]
