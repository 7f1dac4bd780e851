"""The file that --json or another flag names."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psann_jax.config import require


def check_writable(path: Path, flag: str = "--json") -> None:
    """Raises UserError, in the name of a flag, before a measurement what would lose its result."""
    parent = path.absolute().parent
    require(parent.is_dir(), flag, f"{path}: there is no directory {parent}")
    require(not path.is_dir() and os.access(parent, os.W_OK), flag, f"{path}: cannot be written")


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(path)
