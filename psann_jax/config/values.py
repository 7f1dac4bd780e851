"""Checks of single values that do not come from a config file, such as arguments of the Python API."""

import numbers
from typing import Any

from psann_jax.config.checks import require


def require_number(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is a real number; NaN and infinity are real numbers, True is none."""
    ok = isinstance(value, numbers.Real) and not isinstance(value, bool)
    require(ok, name, f"is {value!r}, must be a number")


def require_whole(name: str, value: Any, least: int) -> None:
    """Raises ConfigError unless `value` is a whole number of at least `least`."""
    ok = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    require(ok, name, f"is {value!r}, must be a whole number")
    require(value >= least, name, f"is {value}, must be at least {least}")
