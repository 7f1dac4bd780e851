"""The console script psann-jax, which is also python -m psann_jax."""

from psann_jax.cli.commands import dispatch
from psann_jax.cli.flags import run_command


def main() -> None:
    """Runs the command that the arguments of this program name."""
    run_command(dispatch)


if __name__ == "__main__":
    main()
