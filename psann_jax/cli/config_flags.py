"""What the commands share: reading --config with its overrides, and ending on a user's mistake."""

import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections.config_flags import config_flags

from psann_jax.config.io import flatten, nearest
from psann_jax.utils.errors import UserError
from psann_jax.utils.huge_pages import restart_with_huge_pages


def fail(error: BaseException | str) -> NoReturn:
    """Prints a mistake and ends the program with code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads a command line, for `absl.app.run`; mistakes in it and in the overrides of a --config end the program.

    With a good one it goes on with huge pages, see `psann_jax.utils.huge_pages`.
    """
    # JAX tells at INFO which accelerators it has not found.
    logging.set_verbosity(logging.WARNING)
    try:
        if "config" in flags.FLAGS:
            _check_overrides(argv[1:])
        rest: list[str] = flags.FLAGS(list(argv))
    except (flags.Error, UserError) as error:
        fail(" ".join(str(error).split()))
    if len(rest) > 1:
        fail(f"{rest[1]}: unknown argument; flags begin with --")
    restart_with_huge_pages()
    return rest


def default_workdir() -> Path:
    """runs/ and the place of --config's file within configs/, or the file's name if it is elsewhere."""
    parts = Path(config_flags.get_config_filename(flags.FLAGS["config"])).absolute().with_suffix("").parts
    inside = parts[len(parts) - parts[::-1].index("configs") :] if "configs" in parts else parts[-1:]
    return Path("runs", *inside)


def add_config_root(path: Path) -> None:
    """Lets a config file in a tree named configs import its neighbours, as in `from configs.shared import w3_25m`."""
    parts = path.absolute().parts
    if "configs" in parts[:-1]:
        root = str(Path(*parts[: len(parts) - 1 - parts[::-1].index("configs")]))
        if root not in sys.path:
            sys.path.insert(0, root)


def _check_overrides(arguments: Sequence[str]) -> None:
    """Raises UserError if the config file cannot be read or an override names no setting of it."""
    values = [_value_of(arguments, i) for i, a in enumerate(arguments) if a.lstrip("-").split("=")[0] == "config"]
    if not values or not values[-1]:
        if not any(a.startswith(("--help", "-help")) for a in arguments):
            raise UserError("--config: name a config file, for example --config=configs/quickstart.py")
        return
    names = dict(flatten(_load(values[-1])))
    for argument in arguments:
        flag = argument.lstrip("-").split("=")[0]
        if flag.startswith("config."):
            name = flag.removeprefix("config.")
            if name not in names and name.removeprefix("no") not in names:
                raise UserError(f"--{flag}: unknown key{nearest(name, names)}")


def _value_of(arguments: Sequence[str], index: int) -> str:
    _, equals, value = arguments[index].partition("=")
    return value if equals else "".join(arguments[index + 1 : index + 2])


def _load(path_and_argument: str) -> Mapping[str, Any]:
    path, _, argument = path_and_argument.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such config file")
    add_config_root(Path(path))
    try:
        get_config = runpy.run_path(path)["get_config"]
        config: Mapping[str, Any] = (get_config(argument) if argument else get_config()).to_dict()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    return config
