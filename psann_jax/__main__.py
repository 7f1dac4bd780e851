"""The console script psann-jax, which is also python -m psann_jax."""

import sys
from collections.abc import Sequence


def main() -> None:
    """Runs the command that the arguments of this program name."""
    run(sys.argv[1:])


def run(argv: Sequence[str]) -> None:
    """Runs a command and exits; Ctrl-C before it begins ends the program as later, in one line.

    Raises:
      SystemExit: always, with the code.
    """
    try:
        from psann_jax.cli.program import run_program

        run_program(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
