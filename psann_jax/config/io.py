"""From config files, command-line overrides and JSON to `psann_jax.config.Config`, and back.

A config file calls `default_config`, changes what it wants and returns the ConfigDict; `parse` turns it into
checked dataclasses. Unknown keys are errors that name the nearest valid one.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ml_collections import config_dict

from psann_jax.config import BASES, DATA_SECTIONS, Config, ConfigError, DataConfig, DecoderConfig, TrainConfig, require


def default_config(base: str = "waveresnet") -> config_dict.ConfigDict:
    """All settings at their defaults, for a config file to change.

    Args:
      base: a name in `BASES`; decides what the `model` and `data` sections hold.

    Raises:
      ConfigError: unknown base.
    """
    sections = _sections(base)
    data = sections["data"]()
    whole_rows = TrainConfig.batch_tokens // data.max_length * data.max_length
    train = TrainConfig(batch_tokens=whole_rows)
    return _to_config_dict(Config(model=sections["model"](base=base), data=data, train=train))


def model_section(base: str) -> type:
    """The dataclass of the `model` section for a base.

    Raises:
      ConfigError: unknown base; the message lists the right names.
    """
    if base not in BASES:
        raise ConfigError(f"model.base: unknown base {base!r}{nearest(base, BASES)}; choose from {', '.join(BASES)}")
    return BASES[base]


def _sections(base: str) -> dict[str, type]:
    """The dataclasses of the sections that differ between bases."""
    return {"model": model_section(base), "data": DATA_SECTIONS.get(base, DataConfig)}


def _to_config_dict(section: Any) -> config_dict.ConfigDict:
    out = config_dict.ConfigDict()
    hints = typing.get_type_hints(type(section))
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            value = _to_config_dict(value)
        elif value is None:
            value = config_dict.placeholder(_scalar_type(hints[f.name]))
        out[f.name] = value
    return out


def _scalar_type(hint: Any) -> type:
    """The type that a value of an optional field has."""
    inner = next(a for a in typing.get_args(hint) if a is not types.NoneType)
    return str if typing.get_origin(inner) is Literal else inner


def parse(mapping: config_dict.ConfigDict | Mapping[str, Any]) -> Config:
    """A checked Config from a ConfigDict or a nested mapping (as read from config.json).

    Raises:
      ConfigError: unknown key, wrong type or value; the message begins with the field's dotted name.
    """
    if isinstance(mapping, config_dict.ConfigDict):
        mapping = mapping.to_dict()
    model = mapping.get("model", {})
    config = _build(Config, mapping, "", _sections(model.get("base", DecoderConfig.base)))
    config.check()
    return config


def _build(cls: type, mapping: Mapping[str, Any], prefix: str, sections: Mapping[str, type]) -> Any:
    require(isinstance(mapping, Mapping), prefix.rstrip("."), f"is {mapping!r}, must be a section")
    hints = typing.get_type_hints(cls)
    for key in mapping:
        require(key in hints, f"{prefix}{key}", f"unknown key{nearest(str(key), hints)}")
    values = {}
    for key, value in mapping.items():
        hint = sections.get(key, hints[key]) if cls is Config else hints[key]
        name = f"{prefix}{key}"
        is_section = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        values[key] = _build(hint, value, f"{name}.", sections) if is_section else _coerce(value, hint, name)
    return cls(**values)


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """`value` as the annotated type, or a ConfigError that says what would be right."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in args if a is not types.NoneType)
        return None if value is None else _coerce(value, inner, name)
    if origin is Literal:
        require(
            value in args, name, f"is {value!r}{nearest(str(value), args)}, must be one of {', '.join(map(str, args))}"
        )
        return value
    if origin is tuple:
        require(isinstance(value, list | tuple), name, f"is {value!r}, must be a tuple")
        require(args[-1] is Ellipsis or len(value) == len(args), name, f"is {value!r}, needs {len(args)} values")
        return tuple(_coerce(v, args[0], f"{name}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wrong_type = not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    require(not wrong_type, name, f"is {value!r}, must be of type {hint.__name__}")
    require(hint is not float or math.isfinite(value) or name.split("[")[0].endswith("_bounds"), name, "must be finite")
    return value


def nearest(name: str, valid: Any) -> str:
    """A hint at the valid name most like a wrong one, to end a message with; empty if none is like it."""
    match = difflib.get_close_matches(name, [str(v) for v in valid], n=1, cutoff=0.5)
    return f", did you mean {match[0]}?" if match else ""


def to_dict(config: Any) -> dict[str, Any]:
    """A config or section as nested plain dicts, ready for JSON and for `parse`."""
    return dataclasses.asdict(config)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting in a nested mapping; lists come out as tuples."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value
