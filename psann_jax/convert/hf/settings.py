"""Checks of the settings in config.json of a folder of `transformers`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psann_jax.utils.errors import UserError


def require_value(condition: bool, key: str, given: Any, value: Any, path: Path) -> None:
    """Raises UserError that names the file, the setting, what it is and what it must be, unless a condition holds."""
    if not condition:
        raise UserError(f"{path}: {key} is {given!r}, must be {value}")


def positive(content: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int:
    """Returns a positive integer.

    Args:
      content: of config.json.
      key: of the setting.
      path: of the file, for messages.
      default: of a setting that may be missing; None: it must be there.

    Raises:
      UserError: it is missing or something else.
    """
    value = content.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{path}: {key} is {value!r}, must be a positive integer")
    return value
