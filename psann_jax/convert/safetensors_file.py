"""Weights in one safetensors file: arrays by dotted path, and config, tokenizer and format version as metadata."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from psann_jax.config import Config, ConfigError
from psann_jax.config.io import parse, to_dict, upgrade_saved
from psann_jax.convert.weights import Weights, check_weights, flat_params, nested_params
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.utils.errors import UserError, one_line
from psann_jax.utils.files import atomic_write, storage_errors

VERSION = 2  # 1: psann_jax 0.1, with older names of settings; see `upgrade_saved`
_KEY = "psann_jax"  # the only metadata key, because the library writes several in arbitrary order
SUFFIX = ".safetensors"
# Types of arrays that are read, by their names in the file.
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
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
    """Reads a file written by `write_safetensors`, or a copy of one with arrays of another floating-point type.

    Arrays of 16 and 64 bits, as other programs write them, are converted to float32.

    Raises:
      UserError: the file is missing, truncated or of another program, or its parts do not match.
    """
    path = Path(path)
    metadata, stored = _read_file(path)
    if _KEY not in metadata:
        folder = "; for a folder of transformers, give hf:DIRECTORY" if (path.parent / "config.json").exists() else ""
        raise UserError(f"{path}: is a safetensors file of another program, not of psann_jax{folder}")
    config, tokenizer = _read_metadata(metadata[_KEY], path)
    try:
        params = nested_params(_as_arrays(stored, path))
    except ValueError as error:
        raise UserError(f"{path}: its arrays cannot be read: {error}") from error
    return check_weights(Weights(config, params, tokenizer), path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file of any program by their names, as float32.

    Raises:
      UserError: the file is missing or truncated, or an array is not of a floating-point type with at least 16 bits.
    """
    return _as_arrays(_read_file(path)[1], path)


def _read_file(path: Path) -> tuple[dict[str, str], list[tuple[str, dict[str, Any]]]]:
    """Returns the metadata of a file, and its arrays as bytes."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        return metadata, safetensors.deserialize(path.read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: is not a complete safetensors file: {one_line(error)}") from error


def _as_arrays(stored: list[tuple[str, dict[str, Any]]], path: Path) -> dict[str, np.ndarray]:
    try:
        return {name: _as_float32(name, **entry) for name, entry in stored}
    except ValueError as error:
        raise UserError(f"{path}: its arrays cannot be read: {error}") from error


def _read_metadata(text: str, path: Path) -> tuple[Config, Tokenizer | None]:
    try:
        content = json.loads(text)
        version = int(content["version"])
        if version > VERSION:
            raise UserError(f"{path}: has format {version}, but this psann_jax reads up to {VERSION}")
        config, saved = parse(upgrade_saved(content["config"])), content.get("tokenizer")
        return config, None if saved is None else Tokenizer.from_bytes(saved.encode())
    except ConfigError as error:
        raise UserError(f"{path}: its config or tokenizer cannot be read: {error}") from error
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"{path}: its config or tokenizer cannot be read: {one_line(error)}") from error


def _as_float32(name: str, *, dtype: str, shape: Sequence[int], data: bytes) -> np.ndarray:
    """Returns one array of a file.

    Raises:
      ValueError: it is not of a floating-point type with at least 16 bits.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"{name} is of type {dtype}, must be one of {', '.join(_DTYPES)}")
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape).astype(np.float32, copy=False)
