"""Config files, and overrides such as ``train.lr=1e-3`` from a command line."""

import ast
import functools
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ml_collections import config_dict

from psann_jax.config.bases import parse_active, with_base
from psann_jax.config.checks import ConfigError, require
from psann_jax.config.data import DataConfig
from psann_jax.config.io import flatten, parse
from psann_jax.config.names import nearest
from psann_jax.config.schema import Config
from psann_jax.config.yaml_files import is_yaml, load_yaml, place, split_argument
from psann_jax.utils.errors import UserError, one_line

_VALID_SOURCES, _VALID_FRACTION = "data.valid_sources", "data.valid_fraction"


def load_config_file(path_and_argument: str) -> config_dict.ConfigDict:
    """Runs ``get_config`` of a Python file, or reads a YAML or JSON file, such as the config.json of a run.

    A Python file below a directory named ``configs`` can import its neighbours, as in ``from configs.shared import
    w3_25m``; any file can import from a directory ``configs`` in the current one. Settings of a YAML file that have no
    counterpart here are reported on standard error.

    Args:
      path_and_argument: "FILE" or, for Python, "FILE:ARGUMENT"; the argument is passed to ``get_config``.

    Raises:
      UserError: no such file, or it fails.
    """
    path, argument = split_argument(path_and_argument)
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such config file")
    if is_yaml(path):
        if argument:
            raise UserError(f"{path}: is a {Path(path).suffix[1:]} file, which takes no argument; omit :{argument}")
        config, notes = load_yaml(path)
        for note in notes:
            print(f"note: {path}{note}", file=sys.stderr)
        return config
    _make_neighbours_importable(Path(path))
    try:
        get_config = runpy.run_path(path).get("get_config")
        config = get_config and (get_config(argument) if argument else get_config())
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(f"{path}: needs a function get_config() that returns a ConfigDict, as in configs/quickstart.py")
    return config


def _make_neighbours_importable(path: Path) -> None:
    parts = path.absolute().parts
    if "configs" in parts[:-1]:
        root = str(Path(*parts[: len(parts) - 1 - parts[::-1].index("configs", 1)]))
        if root not in sys.path:
            sys.path.insert(0, root)
    if os.path.isdir("configs") and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for a copy of one of these files elsewhere


def load_experiment(
    path_and_argument: str, overrides: Sequence[str], flag: str = "config"
) -> tuple[Config, dict[str, object]]:
    """The checked experiment of a config file with overrides.

    If an override chooses another base, settings of the file that this base does not have, or that have no effect with
    it, are dropped.

    Args:
      path_and_argument: see `load_config_file`.
      overrides: see `apply_overrides`.
      flag: the command-line flag that names the config file, for error messages.

    Returns:
      The experiment; and the settings that were dropped, by dotted name.

    Raises:
      UserError: the file cannot be read or is a sweep, or a setting is wrong.
    """
    settings = load_config_file(path_and_argument)
    if "contenders" in settings:
        raise UserError(f"--{flag}: {path_and_argument} is a sweep; run it with psann-jax sweep, or name an experiment")
    try:
        return _overridden(settings, overrides, flag)
    except ConfigError as error:
        name = str(error).partition(":")[0]
        overridden = any(override_key(override, (name,)) == name for override in overrides)
        path, _ = split_argument(path_and_argument)
        where = place(path, name) if is_yaml(path) and not overridden else ""
        if not where:
            raise
        raise ConfigError(f"{error}{where}") from error


def _overridden(
    settings: config_dict.ConfigDict, overrides: Sequence[str], flag: str
) -> tuple[Config, dict[str, object]]:
    base = dict(override.partition("=")[::2] for override in overrides).get("model.base")
    if base is None or "model" not in settings or base == settings.model.get("base"):
        apply_overrides(settings, overrides, flag)
        return parse(settings), {}
    moved, missing = with_base(settings, base)
    apply_overrides(moved, overrides, flag)
    names = dict(flatten(moved.to_dict()))
    config, inactive = parse_active(moved, fixed={override_key(o, names) for o in overrides})
    return config, missing | inactive


def apply_overrides(config: config_dict.ConfigDict, overrides: Sequence[str], flag: str = "config") -> None:
    """Changes settings in place; values are read as the type of the setting.

    An override that names a validation text replaces the split of the file: data.valid_fraction returns to its default.

    Args:
      config: from `load_config_file` or `psann_jax.config.io.default_config`.
      overrides: "KEY=VALUE" with the dotted name of a setting; for a boolean also "KEY" and "noKEY". A tuple is written
        as in Python, a tuple of one value also as that value. None restores a setting that may be None.
      flag: the command-line flag that names the config file, for error messages.

    Raises:
      ConfigError: an unknown key, or a value of another type.
    """
    names = dict(flatten(config.to_dict()))
    for override in overrides:
        check_override_name(override, names, flag)
        name, equals, text = override.partition("=")
        key = override_key(override, names)
        *sections, leaf = key.split(".")
        section = functools.reduce(getattr, sections, config)
        kind = section.get_type(leaf)
        option = f"--{flag}.{name}"
        is_off = name != key  # "noKEY"
        require(not is_off or (kind is bool and not equals), option, f"write --{flag}.{key}=VALUE, with {_FORMS[kind]}")
        require(bool(equals) or kind is bool, option, f"has no value; must be {_FORMS[kind]}")
        section[leaf] = _read_value(text, kind, option) if equals else not is_off
    changed = {override_key(override, names) for override in overrides}
    if _VALID_SOURCES in changed and config.data.valid_sources and _VALID_FRACTION not in changed:
        config.data.valid_fraction = DataConfig.valid_fraction


# How values of each type are written, for error messages.
_FORMS = {bool: "true or false", int: "a whole number", float: "a number", str: "TEXT", tuple: "a tuple"}


def _read_value(text: str, kind: type, option: str) -> object:
    """Returns an override's text as a value of a type.

    Raises:
      ConfigError: it is of another type; `option` names it.
    """
    if text == "None":
        return None
    if kind is tuple:
        return _read_tuple(text, option)
    words = {"true": True, "1": True, "false": False, "0": False}
    read: Callable[[str], object] = (lambda value: words[value.lower()]) if kind is bool else kind
    try:
        return read(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{option}: is {text[:80]!r}, must be {_FORMS[kind]}") from error


def _read_tuple(text: str, option: str) -> tuple[object, ...]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        if "," in text or text[:1] in ("(", "["):
            parts = [part.strip(" ()[]'\"") for part in text[:80].split(",")]
            form = tuple(part for part in parts if part) or ("a", "b")
            raise ConfigError(f"{option}: is {text[:80]!r}, must be a tuple: {option}={str(form)!r}") from error
        value = text
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def override_name(override: str) -> str:
    """The name in an override, for booleans possibly with "no" in front."""
    return override.partition("=")[0]


def override_key(override: str, names: Iterable[str]) -> str:
    """The setting that an override changes; a boolean may be spelled "noKEY"."""
    name = override_name(override)
    return name if name in names else name.removeprefix("no")


def check_override_name(override: str, names: Iterable[str], flag: str = "config") -> None:
    """Raises ConfigError, with the nearest valid name, unless an override names one of the settings."""
    name, names = override_name(override), set(names)
    example = next((key for key in sorted(names) if key.startswith(f"{name}.")), "")
    require(not example, f"--{flag}.{name}", f"is a section; change one of its settings, such as --{flag}.{example}")
    if override_key(override, names) not in names:
        raise ConfigError(f"--{flag}.{name}: unknown key{nearest(name, sorted(names))}")
