"""Two processes of a resumed run, of which one gets a signal before the first update."""

import os
import signal
import time

import jax

from psann_jax.train.preemption import StopSignals
from psann_jax.train.processes import join

FIRST = 100


def main():
    """Prints the step after which both stop."""
    join(timeout_s=60)
    with StopSignals() as signals:
        if jax.process_index() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)  # until the service has told the other
        steps = range(FIRST, FIRST + 10)
        stopped = next((step for step in steps if signals.should_stop(step)), None)
    print(f"stopped {stopped}")


if __name__ == "__main__":
    main()
