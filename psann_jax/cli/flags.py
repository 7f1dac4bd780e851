"""Command lines: parsers with one-line errors, and config files with overrides.

Nothing here imports JAX, so an error in a command line or a config file shows at once.
"""

import argparse
import functools
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from psann_jax.config import Config
from psann_jax.config.files import load_experiment
from psann_jax.config.names import nearest
from psann_jax.config.reference import groups, render_help
from psann_jax.utils.errors import UserError, one_line
from psann_jax.utils.locations import BucketUrl, given_location

PRECISIONS = ("run", "auto", "fp32", "bf16", "fp16")

# Flags of earlier versions and what does their work now.
_MOVED = {"--print_sharding": "psann-jax bench layout --config=FILE", "--averaged": "--ema"}


class StrictParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line with exit code 2; an unknown flag gets the nearest valid one."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"psann-jax {command}", description=description, allow_abbrev=False)

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses the arguments of a command; exits with code 2 on any error in them."""
        for argument in argv:
            if argument.startswith("--") and argument.endswith("=--"):  # argparse would take it for an empty list
                fail(f"{argument.partition('=')[0]}: is '--', must be a value")
        flags, unknown = self.parse_known_args(list(argv))
        if unknown:
            name = unknown[0].split("=")[0]
            if name in _MOVED:
                fail(f"{name}: is now {_MOVED[name]}")
            hint = nearest(name, self.options()) if name.startswith("-") else "; flags begin with --"
            fail(f"{name}: unknown argument{hint}")
        return flags

    def options(self) -> list[str]:
        """The valid flags, for suggestions."""
        return [option for action in self._actions for option in action.option_strings]

    def error(self, message: str) -> NoReturn:
        """Exits with code 2 and the message."""
        fail(message.removeprefix("argument "))


class RunParser(StrictParser):
    """The flags of all commands that use a trained run."""

    def __init__(
        self,
        command: str,
        description: str,
        *,
        precision: str,
        takes_several: bool = False,
        divides_windows: bool = False,
    ) -> None:
        """Adds the flags.

        Args:
          command: its name.
          description: for --help.
          precision: default of --precision.
          takes_several: whether --workdir can be repeated; the flag is then a list.
          divides_windows: whether --mesh can have a fourth size, of the axis context.
        """
        super().__init__(command, description)
        add = self.add_argument
        about = "the trained run: the --workdir of its training"
        if takes_several:
            add("--workdir", required=True, metavar="DIR", action="append", help=f"{about}; can be repeated")
        else:
            add("--workdir", required=True, metavar="DIR", help=about)
        add("--checkpoint", default="last", metavar="WHICH", help="last, best (by validation) or a step; default last")
        add("--ema", action="store_true", dest="ema_params", help="use the EMA of the weights (train.ema_decay)")
        add(
            "--precision",
            default=precision,
            choices=PRECISIONS,
            help="precision of the computation; run: as in training, auto: fp32 on a CPU, elsewhere as in training; "
            f"default {precision}",
        )
        add(
            "--mesh",
            default=(1, 1, 1),
            type=functools.partial(_mesh_sizes, with_context=divides_windows),
            metavar="D,F,T[,C]" if divides_windows else "D,F,T",
            help="devices along the axes data, fsdp and tensor"
            f"{', and context, which divides windows' if divides_windows else ''}; default 1,1,1",
        )


def load_options(flags: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `psann_jax.runs.restore.load_run` that the flags of a `RunParser` give."""
    return {name: getattr(flags, name) for name in ("precision", "mesh", "ema_params")}


class ConfigParser(StrictParser):
    """Adds --config=FILE and its overrides, --config.KEY=VALUE.

    The parsed flags have `config_file`, a path, and `overrides`, a list as `psann_jax.config.files.apply_overrides`
    takes it; `read_config` turns both into a `Config`.
    """

    def __init__(
        self,
        command: str,
        description: str,
        *,
        default_file: str | None = None,
        default_overrides: Sequence[str] = (),
    ) -> None:
        """Adds the flags.

        Args:
          command: its name.
          description: for --help.
          default_file: the config file if there is no --config; None: --config is required.
          default_overrides: applied to default_file only, before those of the command line.
        """
        super().__init__(command, description)
        self._default_file, self._default_overrides = default_file, default_overrides
        default = "" if default_file is None else "; default " + " ".join((default_file, *default_overrides))
        add = self.add_argument
        add("--config", dest="config_file", metavar="FILE", help=f"a config file, as in configs/{default}")
        add_override_help(self, "config")

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses the arguments of a command; exits with code 2 on any error in them."""
        rest, overrides = split_overrides(argv, "config")
        flags = super().parse_strictly(rest)
        if not flags.config_file:
            if self._default_file is None:
                fail("--config: name a config file, for example --config=configs/quickstart.py")
            flags.config_file = self._default_file
            overrides = [*self._default_overrides, *overrides]
        flags.overrides = overrides
        return flags

    def options(self) -> list[str]:
        """See `StrictParser`; settings count as flags, so that --lr suggests --config.train.lr."""
        return [*super().options(), *(f"--config.{setting.name}" for group in groups() for setting in group.settings)]

    def format_help(self) -> str:
        """The flags, then all settings."""
        return f"{super().format_help()}\n{render_help()}"


def add_override_help(parser: argparse.ArgumentParser, flag: str) -> None:
    """Lists --FLAG.KEY in a parser's --help; `split_overrides` takes these arguments away before it parses."""
    parser.add_argument(
        f"--{flag}.KEY",
        dest=argparse.SUPPRESS,
        metavar="VALUE",
        help=f"changes a setting of the file, for example --{flag}.train.lr=1e-3; --no{flag}.KEY turns one off",
    )


def split_overrides(argv: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """Separates the overrides of a config flag from the other arguments.

    Returns:
      The other arguments; and the overrides, --FLAG.KEY=VALUE or --FLAG.KEY VALUE as "KEY=VALUE", --FLAG.KEY as
      "KEY" and --noFLAG.KEY as "noKEY".
    """
    rest, overrides = [], []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if argument.startswith(f"--{flag}."):
            override = argument.removeprefix(f"--{flag}.")
            has_value = "=" not in override and arguments and arguments[0] != "-h" and arguments[0][:2] != "--"
            overrides.append(f"{override}={arguments.pop(0)}" if has_value else override)
        elif argument.startswith(f"--no{flag}."):
            overrides.append("no" + argument.removeprefix(f"--no{flag}."))
        else:
            rest.append(argument)
    return rest, overrides


def read_config(flags: argparse.Namespace) -> Config:
    """The checked experiment of --config with the overrides of the command line; see `read_experiment`."""
    return read_experiment(flags.config_file, flags.overrides)


def read_experiment(file: str, overrides: Sequence[str], flag: str = "config") -> Config:
    """The checked experiment of a config file with overrides; prints a note if settings of the file are not used.

    Arguments and errors are those of `psann_jax.config.files.load_experiment`.
    """
    config, dropped = load_experiment(file, overrides, flag)
    if dropped:
        names = ", ".join(f"{name}={value}" for name, value in dropped.items())
        print(f"note: {file}: not used with base {config.model.base}: {names}", file=sys.stderr)
    return config


def default_workdir(config_file: str) -> Path:
    """runs/ and the path of a config file below configs/, or only its name if it is elsewhere."""
    parts = Path(config_file).absolute().with_suffix("").parts
    folders = parts[:-1]
    return Path("runs", *parts[len(folders) - folders[::-1].index("configs") :] if "configs" in folders else parts[-1:])


def output_location(flags: argparse.Namespace, name: str) -> Path | BucketUrl:
    """Where a command on a run writes a file: --out if that is given, else NAME in the workdir."""
    if flags.out is not None:
        return given_location(flags.out, "--out")
    return given_location(flags.workdir, "--workdir") / name


def add_engine(parser: argparse.ArgumentParser, job: str, jobs: str) -> None:
    """Adds the flags that say where jobs run: --jobs, --engine, --address and --cpus_per_JOB.

    Args:
      parser: of the command; it calls `refuse_inactive_engine` with the parsed flags.
      job: one job, as in --cpus_per_run.
      jobs: what --jobs is, for --help.
    """
    add = parser.add_argument
    add("--jobs", type=positive_int, metavar="N", help=jobs)
    add("--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster; default local")
    where = "of the Ray cluster; default the one this machine is in, or a new one"
    add("--address", type=_address, metavar="HOST:PORT", help=where)
    cores = f"CPU cores of a {job} on the Ray cluster; default 1"
    add(f"--cpus_per_{job}", type=positive_int, metavar="N", help=cores)


def refuse_inactive_engine(flags: argparse.Namespace, *sizes: str) -> None:
    """Refuses flags of `add_engine` that have no effect on the chosen engine.

    Args:
      flags: the parsed flags.
      sizes: names of those that give the size of a job on a cluster.

    Raises:
      UserError: one of them is given.
    """
    if flags.engine == "ray" and flags.jobs is not None:
        instead = " or ".join(f"--{name}" for name in sizes)
        raise UserError(f"--jobs: has no effect with --engine=ray; set {instead}")
    for name in ("address", *sizes):
        if flags.engine == "local" and getattr(flags, name) is not None:
            raise UserError(f"--{name}: has no effect without --engine=ray")


def _address(text: str) -> str:
    if not re.fullmatch(r"[^\s/:]+:\d{1,5}", text):
        raise argparse.ArgumentTypeError(f"is {text[:80]!r}, must be HOST:PORT")
    return text


def positive_int(text: str) -> int:
    """A flag's value as a whole number of at least 1, for `type=` of a parser's argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a whole number of at least 1")
    return int(text)


def positive_number(text: str) -> float:
    """A flag's value as a finite number above 0, for `type=` of a parser's argument."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"is {text[:80]!r}, must be a positive number")
    return value


def names(text: str) -> list[str]:
    """A flag's value as a list of names with commas between them, for `type=` of a parser's argument."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("is empty, must be one name or several with commas between them")
    return found


def writable_file(text: str) -> Path:
    """A flag's value as the path of a file that can be written, for `type=` of a parser's argument."""
    try:
        path = Path(text).expanduser()
        parent = path.absolute().parent
        has_parent, is_free = parent.is_dir(), not path.is_dir() and os.access(parent, os.W_OK)
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, an unknown user, a null character
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: cannot be written: {one_line(error)[:80]}") from error
    if not has_parent:
        raise argparse.ArgumentTypeError(f"{path}: there is no directory {parent}")
    if not is_free:
        raise argparse.ArgumentTypeError(f"{path}: cannot be written")
    return path


def _mesh_sizes(text: str, *, with_context: bool) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) == 3 or (with_context and len(sizes) == 4):
        return sizes
    form = "three sizes such as 1,1,1"
    raise argparse.ArgumentTypeError(f"is {text!r}, must be {form}{' or four such as 1,1,1,8' if with_context else ''}")


def fail(error: BaseException | str, code: int = 2) -> NoReturn:
    """Prints an error in one line and exits with a code."""
    print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
    raise SystemExit(code)
