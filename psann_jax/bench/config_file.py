"""Writes settings as a config file, to pass them to a command."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SOURCE = """
import json
from pathlib import Path

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(json.loads((Path(__file__).parent / "config.json").read_text()))
"""


def write_config_file(settings: Mapping[str, Any], folder: Path) -> Path:
    """Writes `config.py` and the `config.json` that it reads into an existing folder.

    Args:
      settings: from `psann_jax.config.io.to_dict`.
      folder: receives both files.

    Returns:
      The path of config.py, for --config.
    """
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    path = folder / "config.py"
    path.write_text(_SOURCE, encoding="utf-8")
    return path
