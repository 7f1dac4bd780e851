"""Weights in one safetensors file: arrays by dotted path, and config, tokenizer and format version as metadata."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from psann_jax.config import ConfigError
from psann_jax.config.io import parse, to_dict, upgrade_saved
from psann_jax.convert.weights import Weights, check_weights, flat_params, nested_params
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, storage_errors

VERSION = 2  # 1: psann_jax 0.1, with older names of settings; see `upgrade_saved`
_KEY = "psann_jax"  # the only metadata key, because the library writes several in arbitrary order
SUFFIX = ".safetensors"
DEFAULT_NAME = f"model{SUFFIX}"


def write_safetensors(path: str | os.PathLike[str], weights: Weights) -> None:
    """Writes a file atomically; `read_safetensors` returns exactly the same weights.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    metadata: dict[str, Any] = {"version": VERSION, "config": to_dict(weights.config)}
    if weights.tokenizer is not None:
        metadata["tokenizer"] = weights.tokenizer.to_bytes().decode()
    arrays = {name: np.ascontiguousarray(array) for name, array in flat_params(weights.params).items()}
    content = safetensors.numpy.save(arrays, {_KEY: json.dumps(metadata)})
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)


def read_safetensors(path: str | os.PathLike[str]) -> Weights:
    """Reads a file written by `write_safetensors`.

    Raises:
      UserError: the file is missing, truncated or of another program, or its parts do not match.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a complete safetensors file: {error}") from error
    if _KEY not in metadata:
        raise UserError(f"{path}: is a safetensors file of another program, not of psann_jax")
    try:
        content = json.loads(metadata[_KEY])
        version = int(content["version"])
        if version > VERSION:
            raise UserError(f"{path}: has format {version}, but this psann_jax reads up to {VERSION}")
        config, saved = parse(upgrade_saved(content["config"])), content.get("tokenizer")
        tokenizer = None if saved is None else Tokenizer.from_bytes(saved.encode())
    except (KeyError, ValueError, TypeError, AttributeError, ConfigError) as error:
        raise UserError(f"{path}: its config or tokenizer cannot be read: {error}") from error
    return check_weights(Weights(config, nested_params(arrays), tokenizer), path)
