"""The lease of a directory in a bucket: an object that says which process writes there.

A bucket has no locks that end with a process. So the owner of a lease renews it while it lives; a process that finds a
lease watches it, and takes it over if it does not change for a while. Clocks of machines are not compared.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from psann_jax.utils.buckets import Bucket
from psann_jax.utils.errors import UserError

LEASE = ".lease.json"
RENEW_S = 15.0  # between renewals
STALE_S = 75.0  # without a renewal: the owner is dead, or cut off from the bucket
_POLL_S = 1.0


class Lease:
    """The right to write to a directory in a bucket.

    Attributes:
      copy: name of the local copy that the owner works on; `acquire` sets it to that of an earlier copy if nobody has
        written from another one since, otherwise to a new name.
    """

    def __init__(self, bucket: Bucket, lock_file: Path, stale_s: float = STALE_S, earlier_copy: str = "") -> None:
        """Takes no lease yet.

        Args:
          bucket: the directory.
          lock_file: a file on a local disk that this process has locked, so that no other process of this machine
            owns the lease.
          stale_s: seconds without a renewal after which another owner counts as dead.
          earlier_copy: name of the copy that an earlier process has left on this machine; "": there is none.
        """
        stat = lock_file.stat()
        self._bucket, self._stale_s = bucket, stale_s
        self._machine = f"{socket.gethostname()} {_boot_id()} {stat.st_dev}-{stat.st_ino}"
        self._owner = uuid.uuid4().hex
        self._earlier_copy, self.copy = earlier_copy, self._owner
        self._renewals = 0

    def acquire(self, announce: Callable[[str], None]) -> None:
        """Takes the lease; waits up to `stale_s` to see whether another owner is alive.

        Args:
          announce: called with one line before the wait.

        Raises:
          UserError: another process owns the lease and renews it.
        """
        while not self._bucket.create(LEASE, self._content()):
            found = self._bucket.read(LEASE)
            if found is None:
                continue
            if not self._is_dead(found):
                host = self._field(found, "host")
                announce(
                    f"{self._bucket.url}: a process on {host} was writing here; waiting up to {self._stale_s:.0f} s "
                    "to see whether it is alive"
                )
                self._watch(found)
            if self._bucket.read(LEASE) == found:
                self._bucket.delete([LEASE])
                is_last = self._field(found, "copy") == self._earlier_copy
                self.copy = self._earlier_copy if is_last else self._owner

    def renew(self) -> None:
        """Tells other processes that this one is alive.

        Raises:
          UserError: another process has taken the lease over, or the bucket cannot be accessed.
        """
        self.check()
        self._renewals += 1
        self._bucket.write(LEASE, self._content())

    def check(self) -> None:
        """Raises LostLeaseError if this process no longer owns the lease."""
        found = self._bucket.read(LEASE)
        if found is None or self._field(found, "owner") != self._owner:
            taken = "is gone" if found is None else f"was taken over by a process on {self._field(found, 'host')}"
            raise LostLeaseError(f"{self._bucket.url}: the lease of this process {taken}; nothing more is written")

    def release(self) -> None:
        """Gives the lease up, if this process still has it."""
        found = self._bucket.read(LEASE)
        if found is not None and self._field(found, "owner") == self._owner:
            self._bucket.delete([LEASE])

    def _watch(self, found: bytes) -> None:
        """Returns when the lease has not changed for `stale_s`, or is gone."""
        deadline = time.monotonic() + self._stale_s
        while time.monotonic() < deadline:
            time.sleep(min(_POLL_S, self._stale_s))
            now = self._bucket.read(LEASE)
            if now is None:
                return
            if now != found:
                host = self._field(now, "host")
                raise UserError(f"{self._bucket.url}: another process, on {host}, is training in this workdir")

    def _is_dead(self, found: bytes) -> bool:
        # The owner had the lock that this process has now.
        return self._field(found, "machine") == self._machine

    def _content(self) -> bytes:
        facts = {
            "owner": self._owner,
            "copy": self.copy,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "machine": self._machine,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "renewals": self._renewals,
        }
        return json.dumps(facts, indent=2).encode() + b"\n"

    @staticmethod
    def _field(content: bytes, name: str) -> str:
        try:
            return str(json.loads(content)[name])
        except (ValueError, KeyError, TypeError):
            return "an unknown machine"


class LostLeaseError(UserError):
    """Another process has taken over the directory that this one was writing to."""


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
