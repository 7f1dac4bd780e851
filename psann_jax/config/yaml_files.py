"""YAML and JSON config files: settings of this project, nested or dotted, or settings of one of the originals.

Only what ``yaml.safe_load`` accepts is read. Aliases of lists and sections are refused: they can hide what a file says.
"""

import functools
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ml_collections import config_dict

from psann_jax.config.checks import ConfigError
from psann_jax.config.decoder import DecoderConfig
from psann_jax.config.families import families
from psann_jax.config.io import default_config, flatten, read_setting, setting_type
from psann_jax.config.names import nearest
from psann_jax.config.original_keys import GENERIC, ORIGINALS, Original, Unused
from psann_jax.utils.errors import UserError, one_line

_OWN = "psann_jax"


def split_argument(path_and_argument: str) -> tuple[str, str]:
    """Returns the path of a config file, with ~ expanded, and the argument behind a colon, "" if there is none.

    A path may have colons, too, as that of a run that is named by its time; it ends where there is a file.
    """
    text = os.path.expanduser(path_and_argument)
    ends = [i for i, character in enumerate(text) if character == ":"]
    end = next((i for i in (len(text), *ends) if os.path.isfile(text[:i])), min(ends, default=len(text)))
    return text[:end], text[end + 1 :]


def is_yaml(path: str) -> bool:
    """Returns whether a config file is read as YAML, by its name.

    JSON is YAML, too, so that the config.json of a run can be the config file of another.

    Args:
      path: of the file; an argument behind a colon is not part of the name.
    """
    return Path(split_argument(path)[0]).suffix.lower() in (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Entry:
    """One setting of a file.

    Attributes:
      key: its keys from the outermost to the innermost, joined by dots.
      value: a scalar or a list; {} or None for a section without settings.
      line: the line of its key, counted from 1.
    """

    key: str
    value: Any
    line: int


# Settings by dotted name: the key that stands for each in the file, its value, and its line, 0 if none does.
_Located = dict[str, tuple[str, Any, int]]


def load_yaml(path: str) -> tuple[config_dict.ConfigDict, list[str]]:
    """The experiment of a YAML file.

    Types of values are checked here, with the line in the message. The rest is checked with the whole experiment, after
    overrides; see `place`.

    Returns:
      The experiment; and notes on the keys of an original that are not used, each beginning with ":LINE: " or ": ".

    Raises:
      UserError: the file cannot be read, has an unknown or repeated key, keys of several programs, or a value of a
        wrong type; the message begins with file and line.
    """
    settings, notes = _located(path)
    return _with_settings(path, settings), notes


def place(path: str, name: str) -> str:
    """Returns which key of a YAML file stands for a setting, " (FILE:LINE: KEY)"; "" if none does."""
    key, _, line = _located(path)[0].get(name, ("", None, 0))
    return f" ({path}:{line}: {key})" if line else ""


def _located(path: str) -> tuple[_Located, list[str]]:
    entries = [e for e in read_entries(path) if not (e.value in (None, {}) and _is_section(e.key))]
    format_name = _format(entries)
    known = _known_keys()[format_name]
    for entry in entries:
        if entry.key not in known:
            raise UserError(f"{path}:{entry.line}: {_why_unknown(entry.key, format_name, entries)}")
    if format_name == _OWN:
        return {e.key: (e.key, e.value, e.line) for e in entries}, []
    return _translated(path, entries, ORIGINALS[format_name])


# --- reading ------------------------------------------------------------------------------------------


def read_entries(path: str) -> list[Entry]:
    """The settings of a YAML file in the order of the file.

    Raises:
      UserError: the file is not text in UTF-8 or not YAML, is no mapping, or repeats a key.
    """
    try:
        loader = yaml.SafeLoader(Path(path).read_bytes())
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}: holds no settings; write KEY: VALUE lines, as in configs/yaml/waveresnet.yaml")
        _refuse_repeats(path, root, set())
        entries = list(_entries(path, loader, root, ""))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = path if mark is None else f"{path}:{mark.line + 1}"
        raise UserError(f"{place}: is not YAML: {getattr(error, 'problem', None) or one_line(error)}") from error
    lines: dict[str, int] = {}
    for entry in entries:
        if entry.key in lines:
            raise UserError(f"{path}:{entry.line}: {entry.key}: is set twice, also in line {lines[entry.key]}")
        lines[entry.key] = entry.line
    return entries


def _refuse_repeats(path: str, node: yaml.Node, seen: set[int]) -> None:
    """Raises UserError if a list or mapping appears twice, which is an alias, or a mapping has a key twice."""
    if isinstance(node, yaml.ScalarNode):
        return
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise UserError(f"{path}:{line}: is used again by an alias (*NAME); write the settings out instead")
    seen.add(id(node))
    children = node.value
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{path}:{key.start_mark.line + 1}: a key must be the name of a setting")
            if key.value in lines:
                place = f"{path}:{key.start_mark.line + 1}"
                raise UserError(f"{place}: {key.value}: is set twice, also in line {lines[key.value]}")
            lines[key.value] = key.start_mark.line + 1
        children = [value for _, value in node.value]
    for child in children:
        _refuse_repeats(path, child, seen)


def _entries(path: str, loader: yaml.SafeLoader, node: yaml.MappingNode, prefix: str) -> Iterator[Entry]:
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _entries(path, loader, value, f"{name}.")
            continue
        try:
            constructed = loader.construct_object(value, deep=True)
        except Exception as error:  # PyYAML raises various kinds for a tag that does not fit its value
            why = getattr(error, "problem", None) or f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{path}:{line}: {name}: has a value that cannot be read: {why}") from error
        yield Entry(name, constructed, line)


# --- whose keys they are --------------------------------------------------------------------------------


@functools.cache
def _known_keys() -> dict[str, set[str]]:
    """The keys of this project and of each original."""
    own = {name for base in families() for name, _ in flatten(default_config(base).to_dict())}
    return {_OWN: own, **{name: set(original.keys) for name, original in ORIGINALS.items()}}


def _format(entries: Sequence[Entry]) -> str:
    """The program whose keys the file has; the one that knows most of them, this project if several do."""
    known = _known_keys()
    keys = {entry.key for entry in entries}
    candidates = [name for name in known if name == _OWN or (keys & known[name]) - GENERIC - known[_OWN]]
    return max(candidates, key=lambda name: len(keys & known[name]))


def _is_section(key: str) -> bool:
    """Returns whether a key is a section, in this project or an original; an empty one says nothing."""
    return any(name.startswith(f"{key}.") for known in _known_keys().values() for name in known)


def _why_unknown(key: str, format_name: str, entries: Sequence[Entry]) -> str:
    known = _known_keys()
    names = known[format_name]
    if key.partition(".")[0] in ("bench", "sweep"):
        return f"{key}: a sweep is a Python file here, as configs/sweeps/bases_cpu.py is"
    example = next((name for name in sorted(names) if name.startswith(f"{key}.")), None)
    if example is not None:
        return f"{key}: is a section; indent its settings below it, such as {example}"
    other = next((name for name, keys in known.items() if key in keys), None)
    if other is None or (format_name == _OWN and key in GENERIC):
        return f"{key}: unknown key{nearest(key, sorted(names))}"
    example = next((e.key for e in entries if e.key in names - known[other]), "others")
    return f"{key}: is a key of {other}, but {example} is one of {format_name}; use the keys of one program"


# --- settings -------------------------------------------------------------------------------------------


def _translated(path: str, entries: Sequence[Entry], original: Original) -> tuple[_Located, list[str]]:
    """The settings of a file with an original's keys, and notes on keys that are not used."""
    settings: _Located = {}
    notes = [f": read as settings of {original.name}; --print_config shows them as settings of {_OWN}"]
    for entry in entries:
        rule = original.keys[entry.key]
        if isinstance(rule, Unused):
            notes.append(f":{entry.line}: {entry.key} is not used: {rule.why}")
            continue
        for name, value in _apply(path, rule, entry).items():
            _, before, line = settings.get(name, ("", value, 0))
            if before != value:
                raise UserError(f"{path}:{entry.line}: {entry.key}: contradicts line {line}")
            settings[name] = (entry.key, value, entry.line)
    try:
        values, remarks = original.complete({name: value for name, (_, value, _) in settings.items()})
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from error
    places = {name: settings.get(name, (name, None, 0)) for name in values}
    located = {name: (places[name][0], value, places[name][2]) for name, value in values.items()}
    return located, [*notes, *(f": {remark}" for remark in remarks)]


def _apply(path: str, rule: str | Callable[[Any], Mapping[str, Any]], entry: Entry) -> Mapping[str, Any]:
    """The settings that an original's key stands for."""
    if isinstance(rule, str):
        return {rule: entry.value}
    try:
        return rule(entry.value)
    except ConfigError as error:
        raise UserError(f"{path}:{entry.line}: {entry.key}: {error}") from error


def _with_settings(path: str, settings: _Located) -> config_dict.ConfigDict:
    """The default experiment of the base that the settings choose, with the settings."""
    _, chosen, line = settings.get("model.base", ("", DecoderConfig.base, 0))
    base = str(chosen)
    try:
        config = default_config(base)
    except ConfigError as error:
        raise UserError(f"{path}:{line}: {error}") from error
    for name, (key, value, line) in settings.items():
        try:
            typed = read_setting(base, name, _as_written(value, setting_type(base, name)))
        except ConfigError as error:
            raise UserError(f"{path}:{line}: {key}{str(error).removeprefix(name)}") from error
        *sections, leaf = name.split(".")
        section = config
        for each in sections:
            section = section[each]
        section[leaf] = typed
    return config


def _as_written(value: Any, hint: Any) -> Any:
    """A value of a file for a setting: numbers such as 1e-3, which YAML 1.1 reads as text, and tuples of one value."""
    if typing.get_origin(hint) is tuple and not isinstance(value, list | tuple):
        value = [value]
    if isinstance(value, list | tuple):
        return [_as_written(each, (typing.get_args(hint) or (None,))[0]) for each in value]
    if isinstance(value, str) and (hint is float or float in typing.get_args(hint)):
        try:
            return float(value)
        except ValueError:
            return value
    return value
