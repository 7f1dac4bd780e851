"""Two processes: one fails while the other waits where nothing but a signal would end it."""

import sys
import time
from pathlib import Path

import jax

from psann_jax.train.common_end import before_exit, end_together
from psann_jax.train.processes import join
from psann_jax.utils.errors import DataError


def main(directory, failing):
    """Lets one process fail.

    Args:
      directory: for a file that the other writes before it ends.
      failing: index of the process.
    """
    join(timeout_s=60)
    index = jax.process_index()

    def save():
        Path(directory, f"saved_{index}").touch()

    try:
        with end_together(), before_exit(save):
            if index == int(failing):
                raise DataError("x.txt: is damaged")
            time.sleep(300)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
