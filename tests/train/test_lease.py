"""The lease of a workdir in a bucket: one writer at a time, and a dead one does not block the next."""

import json
import threading
import time

import filelock
import pytest

from psann_jax.train.lease import LEASE, Lease, LostLeaseError
from psann_jax.utils.errors import UserError
from tests.support.bucket import bucket_at, s3_bucket

STALE_S = 1.0


@pytest.fixture(scope="module")
def server():
    with s3_bucket() as url:
        yield url


@pytest.fixture
def machine(server, tmp_path):
    """Returns a lease as a process on a machine takes it; several of one machine share its lock file."""
    url = f"{server}/{tmp_path.name}"

    def lease(name, earlier_copy=""):
        lock_file = tmp_path / name
        filelock.FileLock(lock_file).acquire()
        return Lease(bucket_at(url), lock_file, STALE_S, earlier_copy)

    lease.bucket = bucket_at(url)
    return lease


def acquire(lease):
    """Takes a lease, and returns the lines that it announced."""
    lines = []
    lease.acquire(lines.append)
    return lines


def test_a_released_lease_is_free_at_once(machine):
    first, second = machine("a"), machine("b")
    assert acquire(first) == []
    assert json.loads(machine.bucket.read(LEASE)).keys() >= {"owner", "host", "time"}
    first.release()
    assert machine.bucket.files() == {}
    assert acquire(second) == []
    first.release()  # has no effect on the lease of another
    second.check()


def test_the_lease_of_a_live_process_is_refused(machine):
    first, second = machine("a"), machine("b")
    acquire(first)
    end = threading.Event()

    def renew():
        while not end.wait(STALE_S / 4):
            first.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(UserError, match=r"another process, on .* is training in this workdir"):
        acquire(second)
    end.set()
    thread.join()
    first.check()


def test_the_lease_of_a_dead_process_is_taken_over_when_it_is_stale(machine):
    first, second = machine("a"), machine("b")
    acquire(first)
    began = time.monotonic()
    (line,) = acquire(second)
    assert time.monotonic() - began >= STALE_S
    assert "waiting up to 1 s" in line
    for call in (first.check, first.renew):
        with pytest.raises(LostLeaseError, match="was taken over by a process on"):
            call()
    first.release()
    second.renew()


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(machine):
    acquire(machine("a"))  # the lock of its lock file has ended with the process
    again = machine("a")
    assert acquire(again) == []
    again.check()


def test_a_copy_is_continued_unless_another_process_has_been_there(machine):
    first = machine("a")
    acquire(first)
    again = machine("a", first.copy)
    acquire(again)
    assert again.copy == first.copy
    other = machine("b")
    acquire(other)  # when the lease is stale
    assert other.copy != first.copy
    for earlier_copy in (first.copy, ""):
        late = machine("a", earlier_copy)
        acquire(late)
        assert late.copy not in (first.copy, other.copy, "")
    late.release()
    after_the_end = machine("a", late.copy)
    acquire(after_the_end)
    assert after_the_end.copy != late.copy


def test_a_damaged_lease_becomes_stale_too(machine):
    machine.bucket.write(LEASE, b"not json")
    (line,) = acquire(machine("a"))
    assert "an unknown machine" in line


def test_of_many_processes_one_gets_the_lease(machine):
    leases = [machine(str(i)) for i in range(6)]
    outcomes = []

    def attempt(lease):
        try:
            acquire(lease)
            for _ in range(8):
                time.sleep(STALE_S / 4)
                lease.renew()
            outcomes.append("owner")
        except UserError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=attempt, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("owner") == 1, outcomes
