"""Checks that the sections of a config share; every message begins with the dotted name of the field."""

import dataclasses
from typing import Any

from psann_jax.utils.errors import UserError


class ConfigError(UserError):
    """A config key or value that cannot be used; the message begins with the field's dotted name."""


def require(ok: bool, name: str, message: str) -> None:
    """Raises ConfigError ``name: message`` unless `ok`."""
    if not ok:
        raise ConfigError(f"{name}: {message}")


def at_least(least: int, section: Any, prefix: str, *names: str) -> None:
    """Raises if a named number of `section` is below `least`."""
    for name in names:
        value = getattr(section, name)
        require(value >= least, f"{prefix}.{name}", f"is {value}, must be at least {least}")


def share(section: Any, prefix: str, *names: str) -> None:
    """Raises if a named number of `section` is outside [0, 1)."""
    for name in names:
        value = getattr(section, name)
        require(0 <= value < 1, f"{prefix}.{name}", f"is {value}, must be at least 0 and below 1")


def transformer_sizes(section: Any, prefix: str) -> None:
    """Raises unless a `model` section has positive sizes, heads that divide its features, and a dropout rate."""
    at_least(1, section, prefix, "d_model", "n_layers", "n_heads", "d_mlp")
    share(section, prefix, "dropout")
    require(
        section.d_model % section.n_heads == 0,
        f"{prefix}.d_model",
        f"is {section.d_model}, must be divisible by {prefix}.n_heads={section.n_heads}",
    )


def sine_if_used(section: Any, prefix: str) -> None:
    """Checks the `sine` of a `model` section; raises if it is changed while the MLPs have another activation."""
    section.sine.check(f"{prefix}.sine")
    if section.mlp_activation != "sine":
        refuse_inactive(section.sine, f"{prefix}.sine", "without the sine activation")


def refuse_inactive(section: Any, prefix: str, reason: str, *names: str) -> None:
    """Raises if a named field (default: any) of `section` differs from its default, as it would do nothing."""
    default = type(section)()
    for name in names or [f.name for f in dataclasses.fields(section)]:
        value = getattr(default, name)
        require(getattr(section, name) == value, f"{prefix}.{name}", f"has no effect {reason}; leave it at {value!r}")
