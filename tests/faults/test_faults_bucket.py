"""Runs in a bucket: killed anywhere, they resume from it as from a disk, bit for bit."""

import json
import random
import re
import shutil
import time

import pytest

from psann_jax.train.lease import LEASE
from psann_jax.train.metrics import METRICS
from psann_jax.utils.checksums import CHECKSUMS
from tests.support.bucket import bucket_at, fetch, s3_bucket
from tests.support.experiment import Experiment, saved_steps

pytestmark = pytest.mark.usefixtures("default_signals")


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as url:
        yield url


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Experiment(tmp_path_factory.mktemp("experiment"))


def remote_step(workdir):
    """Returns the last step in the metrics of a run in a bucket, 0 if there are none."""
    rows = (bucket_at(workdir).read(METRICS) or b"").decode().splitlines()
    return max((json.loads(row)["step"] for row in rows), default=0)


def whole_steps(workdir):
    """Returns the steps of whole checkpoints in a bucket."""
    names = bucket_at(workdir).files("checkpoints")
    return sorted(int(name.split("_")[1].split("/")[0]) for name in names if name.endswith(f"/{CHECKSUMS}"))


def assert_finished(experiment, workdir, tmp_path):
    """Checks that a run in a bucket is the uninterrupted run, and that nothing else is left there or here."""
    local = fetch(workdir, tmp_path / "fetched")
    experiment.assert_uninterrupted(local)
    assert json.loads((local / "summary.json").read_text())["steps"] == 60
    assert saved_steps(local) == saved_steps(experiment.whole)
    assert LEASE not in bucket_at(workdir).files()
    assert {path.name for path in experiment.whole.iterdir()} - {".lock"} == {p.name for p in local.iterdir()}
    left = [path for path in (experiment.folder / "cache" / "buckets").glob("*/*") if path.suffix != ".lock"]
    assert left == []


def kill(experiment, workdir, how, rng):
    """Starts the run and kills it: at the "start", when a checkpoint is "saved" in the bucket, or by a fault."""
    if how in ("start", "saved"):
        before = whole_steps(workdir)
        process = experiment.start(workdir, fault="slow")
        if how == "start":
            time.sleep(rng.uniform(0.5, 5))
        else:
            while whole_steps(workdir) == before and process.poll() is None:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
    else:
        process = experiment.start(workdir, fault=how)
    shown = "".join(process.communicate(timeout=120))
    assert process.returncode in (-9, 0), shown
    for step in whole_steps(workdir):
        assert remote_step(workdir) >= step
    return process.returncode


@pytest.mark.slow
def test_killed_runs_resume_from_the_bucket(experiment, bucket, tmp_path):
    workdir, rng = f"{bucket}/runs/killed", random.Random(0)
    for how in ("kill-before-marker=10", "kill-in-remote-deletion"):
        assert kill(experiment, workdir, how, rng) == -9
        shutil.rmtree(experiment.folder / "cache" / "buckets")  # the next start is on another machine
        bucket_at(workdir).delete([LEASE])  # which does not wait
    assert kill(experiment, workdir, "kill-before-marker=40", rng) == -9
    assert max(whole_steps(workdir)) < 40
    shown = experiment.run(workdir)
    assert "continuing with what an earlier start left" in shown
    assert int(re.search(r"resumed +at step (\d+)", shown)[1]) >= 40, "not from the bucket"
    assert_finished(experiment, workdir, tmp_path)


@pytest.mark.slow
def test_twenty_kills_lose_nothing(experiment, bucket, tmp_path):
    workdir, rng = f"{bucket}/runs/killed-often", random.Random(1)
    moments = ["start", "saved", "kill-in-upload", "kill-before-marker", "kill-in-remote-deletion"] * 4
    rng.shuffle(moments)
    kills = 0
    for i, how in enumerate(moments):
        step = max(whole_steps(workdir), default=0)
        target = "" if how in ("start", "saved", "kill-in-remote-deletion") else f"={step + 5}"
        kills += kill(experiment, workdir, how + target, rng) == -9
        if i % 2:
            shutil.rmtree(experiment.folder / "cache" / "buckets", ignore_errors=True)
            bucket_at(workdir).delete([LEASE])
    experiment.run(workdir)
    assert_finished(experiment, workdir, tmp_path)
    assert kills >= 10
