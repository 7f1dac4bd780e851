"""The console script psann-jax, which is also python -m psann_jax."""

import importlib
import sys

from psann_jax.cli.run_flags import run_command

_COMMANDS = ("generate", "evaluate", "solve", "lm_eval", "convert", "coordinates", "sine", "selftest")


def main() -> None:
    """Runs the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in _COMMANDS:
        module = importlib.import_module(f"psann_jax.cli.{name}")
        run_command(lambda argv: module.main(argv[1:]))
    else:
        from absl import app

        from psann_jax.cli import bench

        del sys.argv[1 : 2 if name == "bench" else 1]
        app.run(bench.main, flags_parser=bench._parse)


if __name__ == "__main__":
    main()
