"""Conversion between config files or JSON and `psann_jax.config.Config`.

A config file calls `default_config`, changes settings and returns the ConfigDict. `parse` converts that to checked
dataclasses. An unknown key is an error that suggests the nearest valid one.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ml_collections import config_dict

from psann_jax.config.checks import ConfigError, require, require_known
from psann_jax.config.data import DataConfig
from psann_jax.config.decoder import DecoderConfig, saved_sine
from psann_jax.config.families import family
from psann_jax.config.names import nearest
from psann_jax.config.schema import Config, TrainConfig


def default_config(base: str = "waveresnet") -> config_dict.ConfigDict:
    """The default settings of a base, for a config file to change.

    Raises:
      ConfigError: unknown base.
    """
    chosen = family(base)
    data = chosen.data()
    whole_windows = TrainConfig.batch_tokens // data.max_length * data.max_length
    train = TrainConfig(batch_tokens=whole_windows)
    return _to_config_dict(Config(model=chosen.model(base=base), data=data, train=train))


def _sections(base: str) -> dict[str, type]:
    """The dataclasses of the sections that differ between families."""
    chosen = family(base)
    return {"model": chosen.model, "data": chosen.data}


def _to_config_dict(section: Any) -> config_dict.ConfigDict:
    out = config_dict.ConfigDict()
    hints = field_types(type(section))
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            value = _to_config_dict(value)
        elif value is None:
            value = config_dict.placeholder(_scalar_type(hints[f.name]))
        out[f.name] = value
    return out


def _scalar_type(hint: Any) -> type:
    """The type of an optional field when it is not None."""
    inner = next(a for a in typing.get_args(hint) if a is not types.NoneType)
    return str if typing.get_origin(inner) is Literal else inner


def parse(mapping: config_dict.ConfigDict | Mapping[str, Any]) -> Config:
    """Converts a ConfigDict or a nested mapping (as read from config.json) to a checked Config.

    Raises:
      ConfigError: unknown key, wrong type or invalid value; the message begins with the dotted name of the field.
    """
    if isinstance(mapping, config_dict.ConfigDict):
        mapping = mapping.to_dict()
    model = mapping.get("model", {})
    config = _build(Config, mapping, "", _sections(model.get("base", DecoderConfig.base)))
    config.check()
    return config


# Without the cache, this is most of the time in which a sweep lists its runs.
_type_hints = functools.cache(typing.get_type_hints)


def field_types(section: type) -> dict[str, Any]:
    """Returns the types of the fields of a dataclass, that is, of its settings but not of its class attributes."""
    hints = _type_hints(section)
    return {f.name: hints[f.name] for f in dataclasses.fields(section)}


def setting_type(base: str, name: str) -> Any:
    """Returns the type annotation of a setting.

    Args:
      base: a base.
      name: the dotted name of the setting.

    Raises:
      ConfigError: the base has no such setting.
    """
    section: Any = Config
    for key in name.split("."):
        is_section = isinstance(section, type) and dataclasses.is_dataclass(section)
        hints = {**field_types(section), **(_sections(base) if section is Config else {})} if is_section else {}
        require(key in hints, name, f"is no setting of base {base}")
        section = hints[key]
    return section


def read_setting(base: str, name: str, value: Any) -> Any:
    """Returns a value as the type of a setting; other checks of the value are not made.

    Args:
      base: a base.
      name: the dotted name of the setting.
      value: the value, with lists for tuples.

    Raises:
      ConfigError: the base has no such setting, or the value is of another type; the message begins with `name`.
    """
    return _coerce(value, setting_type(base, name), name)


def is_choice(base: str, name: str, value: Any) -> bool:
    """Returns whether a base has a setting and its type allows a value; arguments as in `read_setting`."""
    try:
        read_setting(base, name, value)
    except ConfigError:
        return False
    return True


def _build(cls: type, mapping: Mapping[str, Any], prefix: str, sections: Mapping[str, type]) -> Any:
    require(isinstance(mapping, Mapping), prefix.rstrip("."), f"is {mapping!r}, must be a section")
    hints = field_types(cls)
    for key in mapping:
        require_known(str(key), hints, f"{prefix}{key}")
    values = {}
    for key, value in mapping.items():
        hint = sections.get(key, hints[key]) if cls is Config else hints[key]
        name = f"{prefix}{key}"
        is_section = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        values[key] = _build(hint, value, f"{name}.", sections) if is_section else _coerce(value, hint, name)
    return cls(**values)


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """Returns `value` as the annotated type; raises ConfigError that says what would be valid."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in args if a is not types.NoneType)
        return None if value is None else _coerce(value, inner, name)
    if origin is Literal:
        if value not in args:
            choices = ", ".join(map(str, args))
            raise ConfigError(f"{name}: is {value!r}{nearest(str(value), args)}, must be one of {choices}")
        return value
    if origin is tuple:
        require(isinstance(value, list | tuple), name, f"is {value!r}, must be a tuple")
        require(args[-1] is Ellipsis or len(value) == len(args), name, f"is {value!r}, needs {len(args)} values")
        return tuple(_coerce(v, args[0], f"{name}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1023 else math.inf
    wrong_type = not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    require(not wrong_type, name, f"is {value!r}, must be of type {hint.__name__}")
    require(hint is not int or abs(value) < 2**63, name, f"is {value}, must be below 2**63")
    require(hint is not float or math.isfinite(value) or name.split("[")[0].endswith("_bounds"), name, "must be finite")
    return value


# Settings that version 0.1 called otherwise, in saved configs: section, old name, new name.
_RENAMED = (("data", "threads", "num_workers"),)


def upgrade_saved(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a saved run with the current names, whichever version saved them."""
    upgraded = {name: dict(value) if isinstance(value, Mapping) else value for name, value in mapping.items()}
    data = upgraded.get("data", {})
    names = (*data.get("sources", ()), *data.get("valid_sources", ()))
    # The default of version 0.1, which had no effect without .txt files; such a run has the default of today.
    if "threads" in data and data.get("document") == "line" and not any(map(_may_be_txt, names)):
        data["document"] = DataConfig.document
    for section, old, new in _RENAMED:
        if old in upgraded.get(section, {}):
            upgraded[section][new] = upgraded[section].pop(old)
    if "sine" in upgraded.get("model", {}):  # earlier versions accepted settings without an effect
        upgraded["model"]["sine"] = saved_sine(upgraded["model"]["sine"])
    return upgraded


def _may_be_txt(source: str) -> bool:
    return not re.fullmatch(r"(builtin|hf|tfds):.*|.*\.(jsonl(\.\w+)?|parquet)", source, re.IGNORECASE)


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a config or section to nested plain dicts, for JSON and `parse`."""
    return dataclasses.asdict(config)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every setting in a nested mapping, with lists as tuples."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value
