"""The file that --json names."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psann_jax.config import require


def check_writable(path: Path) -> None:
    """Raises UserError before a measurement what would lose its result."""
    parent = path.absolute().parent
    require(parent.is_dir(), "--json", f"{path}: there is no directory {parent}")
    require(not path.is_dir() and os.access(parent, os.W_OK), "--json", f"{path}: cannot be written")


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(path)
