"""Runs a command that ends with its parent: python -m psann_jax.engines.attached PARENT_PID PROGRAM ARGUMENT...

When the process that started it ends, however it ends, the command gets SIGTERM and a run saves its state. It would
otherwise continue unseen, and the next start would find its workdir locked. Only Linux can do this; elsewhere the
command runs as it is.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # man 2 prctl; the setting survives execve


def main(parent: int, command: list[str]) -> None:
    """Replaces this process by the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the call
            raise SystemExit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
