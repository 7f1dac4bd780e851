"""Config files, and overrides such as ``train.lr=1e-3`` from a command line."""

import os
import runpy
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from psann_jax.config.checks import ConfigError
from psann_jax.config.io import flatten
from psann_jax.config.names import nearest
from psann_jax.utils.errors import UserError


def load_config_file(path_and_argument: str) -> config_dict.ConfigDict:
    """Runs ``get_config`` of a Python file.

    A file below a directory named ``configs`` can import its neighbours, as in ``from configs.shared import w3_25m``.

    Args:
      path_and_argument: "FILE" or "FILE:ARGUMENT"; the argument is passed to ``get_config``.

    Raises:
      UserError: no such file, or it fails.
    """
    path, _, argument = path_and_argument.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such config file")
    _make_neighbours_importable(Path(path))
    try:
        get_config = runpy.run_path(path)["get_config"]
        config: config_dict.ConfigDict = get_config(argument) if argument else get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    return config


def _make_neighbours_importable(path: Path) -> None:
    parts = path.absolute().parts
    if "configs" in parts[:-1]:
        root = str(Path(*parts[: len(parts) - 1 - parts[::-1].index("configs", 1)]))
        if root not in sys.path:
            sys.path.insert(0, root)


def apply_overrides(config: config_dict.ConfigDict, overrides: Sequence[str], flag: str = "config") -> None:
    """Changes settings in place; values are read as the type of the setting.

    Args:
      config: from `load_config_file` or `psann_jax.config.io.default_config`.
      overrides: "KEY=VALUE" with the dotted name of a setting; for a boolean also "KEY" and "noKEY".
      flag: the command-line flag that names the config file, for error messages.

    Raises:
      ConfigError: an unknown key, or a value of another type.
    """
    names = dict(flatten(config.to_dict()))
    for override in overrides:
        check_override_name(override, names, flag)
    values = flags.FlagValues()
    arguments = ["", *(_as_argument(override, names, flag) for override in overrides)]
    try:
        config_flags.DEFINE_config_dict(flag, config, flag_values=values, lock_config=True, sys_argv=arguments)
        rest = values(arguments)
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(" ".join(str(error).removeprefix("flag ").split())) from error
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]}: unknown argument; overrides are --{flag}.KEY=VALUE")


def override_name(override: str) -> str:
    """The name in an override, for booleans possibly with "no" in front."""
    return override.partition("=")[0]


def check_override_name(override: str, names: Iterable[str], flag: str = "config") -> None:
    """Raises ConfigError, with the nearest valid name, unless an override names one of the settings."""
    name, names = override_name(override), set(names)
    if name not in names and name.removeprefix("no") not in names:
        raise ConfigError(f"--{flag}.{name}: unknown key{nearest(name, sorted(names))}")


def _as_argument(override: str, names: dict[str, object], flag: str) -> str:
    name, equals, value = override.partition("=")
    if name in names:
        return f"--{flag}.{name}{equals}{value}"
    return f"--no{flag}.{name.removeprefix('no')}"
