"""The command line of what works on a trained run; imports nothing slow, so that a mistake is told at once."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from psann_jax.cli.config_flags import fail
from psann_jax.config.io import nearest
from psann_jax.utils.errors import UserError
from psann_jax.utils.huge_pages import restart_with_huge_pages

PRECISIONS = ("run", "auto", "fp32", "bf16", "fp16")


class StrictParser(argparse.ArgumentParser):
    """Flags with one-line errors and code 2."""

    def __init__(self, module: str, description: str) -> None:
        """Args: module that is run; description for --help."""
        super().__init__(prog=f"python -m {module}", description=description, allow_abbrev=False)

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags; a mistake in them ends the program with code 2."""
        flags, unknown = self.parse_known_args(argv)
        if unknown:
            name = unknown[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            fail(f"{name}: unknown argument{nearest(name, known) if name.startswith('-') else '; flags begin with --'}")
        return flags

    def error(self, message: str) -> NoReturn:
        """Ends the program with the message."""
        fail(message.removeprefix("argument "))


class RunParser(StrictParser):
    """With those flags that every command on a run has."""

    def __init__(self, module: str, description: str, *, precision: str) -> None:
        """Args:
        module: that is run.
        description: for --help.
        precision: the default of --precision.
        """
        super().__init__(module, description)
        add = self.add_argument
        add("--workdir", required=True, metavar="DIR", help="the run: what was given to training as --workdir")
        add("--checkpoint", default="last", metavar="WHICH", help="last, best (by validation) or a step; default last")
        add("--ema", action="store_true", help="use the EMA of the weights (train.ema_decay)")
        add(
            "--precision",
            default=precision,
            choices=PRECISIONS,
            help="of the computation; run: as in training, auto: fp32 on CPU and else as in training; "
            f"default {precision}",
        )
        add(
            "--mesh",
            default=(1, 1, 1),
            type=_mesh_sizes,
            metavar="D,F,T",
            help="devices along the axes data, fsdp and tensor; default 1,1,1",
        )


def load_options(flags: argparse.Namespace) -> dict[str, Any]:
    """The options of `psann_jax.runs.restore.load_text_run` in the flags of a `RunParser`."""
    return {name: getattr(flags, name) for name in ("precision", "mesh", "ema_params")}


def _mesh_sizes(text: str) -> tuple[int, int, int]:
    try:
        data, fsdp, tensor = (int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be three sizes such as 1,1,1") from error
    return data, fsdp, tensor


def run_command(command: Any) -> None:
    """Runs a command with the program's arguments, and with huge pages (`psann_jax.utils.huge_pages`).

    A user's mistake ends it with code 2, Ctrl-C with 130.
    """
    restart_with_huge_pages()
    try:
        command(sys.argv[1:])
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
