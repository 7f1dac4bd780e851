"""Checks for the sections of a config. Every message begins with the dotted name of the field."""

import dataclasses
from collections.abc import Collection
from typing import Any

from psann_jax.config.names import nearest
from psann_jax.utils.errors import UserError


class ConfigError(UserError):
    """A config key or value that cannot be used; the message begins with the field's dotted name."""


class InactiveError(ConfigError):
    """A setting that was changed but has no effect in combination with the others.

    Attributes:
      name: its dotted name.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


def require(ok: bool, name: str, message: str) -> None:
    """Raises ConfigError ``name: message`` unless `ok`."""
    if not ok:
        raise ConfigError(f"{name}: {message}")


def require_known(key: str, valid: Collection[str], name: str, problem: str = "unknown key") -> None:
    """Raises ConfigError ``name: problem``, with a suggestion, unless `key` is one of the valid names."""
    if key not in valid:
        raise ConfigError(f"{name}: {problem}{nearest(key, valid)}")


def at_least(least: int, section: Any, prefix: str, *names: str) -> None:
    """Raises ConfigError if a named number of `section` is below `least`."""
    for name in names:
        value = getattr(section, name)
        require(value >= least, f"{prefix}.{name}", f"is {value}, must be at least {least}")


def fraction(section: Any, prefix: str, *names: str) -> None:
    """Raises ConfigError if a named number of `section` is outside [0, 1)."""
    for name in names:
        value = getattr(section, name)
        require(0 <= value < 1, f"{prefix}.{name}", f"is {value}, must be at least 0 and below 1")


def sine_if_used(section: Any, prefix: str) -> None:
    """Checks the `sine` section of a model; raises InactiveError if it was changed but no MLP has a sine activation."""
    section.sine.check(f"{prefix}.sine")
    if not section.uses_sine:
        refuse_inactive(section.sine, f"{prefix}.sine", "without the sine activation")


def refuse_inactive(section: Any, prefix: str, reason: str, *names: str) -> None:
    """Raises InactiveError if a field that would have no effect differs from its default.

    Args:
      section: a section of the config.
      prefix: its dotted name.
      reason: why the fields have no effect, for the message.
      *names: the fields; none for all fields.
    """
    default = type(section)()
    for name in names or [f.name for f in dataclasses.fields(section)]:
        value = getattr(default, name)
        if getattr(section, name) != value:
            raise InactiveError(f"{prefix}.{name}", f"has no effect {reason}; leave it at {value!r}")
