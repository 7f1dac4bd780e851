"""How the cores and GPUs of a machine are divided among jobs."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psann_jax.engines import sharing
from psann_jax.engines.sharing import divide
from psann_jax.utils.errors import UserError

FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine whose usable cores are 0, 2, 3 and 7, without settings of the user."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {7, 0, 3, 2}, raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "XLA_CLIENT_MEM_FRACTION", FRACTION):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("n_jobs", "cores"), [(2, [(0, 2), (3, 7)]), (3, [(0,), (2,), (3, 7)]), (4, [(0,), (2,), (3,), (7,)])]
)
def test_cores_are_dealt_out(n_jobs, cores):
    shares = divide(n_jobs, "cpu", 1)
    assert [share.cores for share in shares] == cores
    assert all(share.shares and not share.environment for share in shares)


@given(st.integers(1, 70), st.integers(2, 90))
def test_no_core_is_idle_and_none_is_used_twice_without_need(n_cores, n_jobs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda process: set(range(n_cores)))
        used = [core for share in divide(n_jobs, "cpu", 1) for core in share.cores]
    counts = [used.count(core) for core in range(n_cores)]
    assert min(counts) >= 1
    assert max(counts) <= -(-n_jobs // n_cores)
    assert len(used) == max(n_cores, n_jobs)


def gpus(share):
    return share.environment["CUDA_VISIBLE_DEVICES"]


def test_each_job_gets_gpus_of_its_own_where_there_are_enough(monkeypatch):
    shares = divide(2, "gpu", 5)
    assert [gpus(share) for share in shares] == ["0,2,4", "1,3"]
    assert not any(share.shares or FRACTION in share.environment for share in shares)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert [gpus(share) for share in divide(2, "gpu", 2)] == ["3", "5"], "those that the user allows"


def test_jobs_on_one_gpu_share_its_memory(monkeypatch):
    shares = divide(3, "gpu", 2)
    assert [gpus(share) for share in shares] == ["0", "1", "0"]
    assert [share.environment.get(FRACTION) for share in shares] == ["0.3750", None, "0.3750"]
    assert [share.shares for share in shares] == [True, False, True]
    monkeypatch.setenv(FRACTION, ".9")
    assert [share.environment[FRACTION] for share in divide(2, "gpu", 1)] == ["0.4500"] * 2
    monkeypatch.setenv(FRACTION, "most")
    with pytest.raises(UserError, match=rf"^{FRACTION}: is 'most', must be a number$"):
        divide(2, "gpu", 1)


def test_a_tpu_belongs_to_one_run():
    with pytest.raises(UserError, match=r"^--jobs: tpu devices belong to one run at a time; omit it"):
        divide(2, "tpu", 4)


def test_where_processes_cannot_be_bound_to_cores_their_threads_are_limited(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(sharing, "usable_cores", lambda: 8)
    assert [(share.cores, share.environment) for share in divide(3, "cpu", 1)] == [((), {"NPROC": "2"})] * 3
