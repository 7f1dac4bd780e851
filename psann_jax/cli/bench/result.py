"""The result of a measurement: a table on standard output, and JSON in the file of --json."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psann_jax.cli.flags import writable_file
from psann_jax.utils.files import write_json


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="write the result as JSON")


def show(table: str, result: Mapping[str, Any], json_file: Path | None) -> None:
    """Prints the table, and writes the result if there is a file for it."""
    print(table)
    if json_file is not None:
        write_json(json_file, result)
