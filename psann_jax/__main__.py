"""The console script psann-jax, which is also python -m psann_jax."""

import sys

from psann_jax.cli.program import run_program


def main() -> None:
    """Runs the command that the arguments of this program name."""
    run_program(sys.argv[1:])


if __name__ == "__main__":
    main()
