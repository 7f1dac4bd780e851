"""Command line of the measurements: psann-jax bench throughput --config=configs/quickstart.py."""

import importlib
import sys
from collections.abc import Sequence

from absl import app

from psann_jax.cli.config_flags import fail, parse_flags
from psann_jax.utils.errors import UserError

# Subcommand -> the module that defines its flags and has `main()`, and DEFAULT_ARGUMENTS where it needs no --config.
_NAMES = ("throughput", "generate", "scaling", "devices", "start", "memory")
_COMMANDS = {name: f"psann_jax.bench.{name}" for name in _NAMES}
_COMMANDS |= {name: f"psann_jax.experiments.{name}" for name in ("screening", "sweep", "make_eval")}


def _parse(argv: Sequence[str]) -> list[str]:
    """Reads the subcommand and its flags; returns the program and the subcommand."""
    name = argv[1] if len(argv) > 1 else ""
    if name in ("-h", "--help"):
        print(f"{__doc__}\nSubcommands, each with its own --help: {', '.join(_COMMANDS)}")
        raise SystemExit(0)
    if name not in _COMMANDS:
        asked = f"{name!r} is no subcommand" if name else "a subcommand is missing"
        fail(f"{asked}; choose from {', '.join(_COMMANDS)}, as in psann-jax bench {next(iter(_COMMANDS))} ...")
    module, arguments = importlib.import_module(_COMMANDS[name]), list(argv[2:])
    if not any(a.lstrip("-").split("=")[0] == "config" for a in arguments):
        arguments[:0] = getattr(module, "DEFAULT_ARGUMENTS", ())
    try:
        parse_flags([argv[0], *arguments])
    except (AttributeError, KeyError) as error:  # from ml_collections, for overrides of another config than --config
        reason: object = error
        while isinstance(reason, BaseException) and reason.args:
            reason = reason.args[0]
        fail(" ".join(str(reason).split()))
    return [argv[0], name]


def main(argv: Sequence[str]) -> None:
    """Runs the subcommand."""
    try:
        importlib.import_module(_COMMANDS[argv[1]]).main()
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
