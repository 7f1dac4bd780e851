"""Weights as one safetensors file: arrays by dotted path; config, tokenizer and format version as metadata."""

import contextlib
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
from psann_jax.utils.files import storage_errors

VERSION = 2  # 1: psann_jax 0.1, with older names of settings; see `upgrade_saved`
_KEY = "psann_jax"  # the only one: with several, the library would write them in any order
SUFFIX = ".safetensors"
DEFAULT_NAME = f"model{SUFFIX}"


def write_safetensors(path: str | os.PathLike[str], weights: Weights) -> None:
    """Writes a file, whole or not at all; `read_safetensors` gives the same bits back.

    Raises:
      UserError: it cannot be written.
    """
    path = Path(path)
    about: dict[str, Any] = {"version": VERSION, "config": to_dict(weights.config)}
    if weights.tokenizer is not None:
        about["tokenizer"] = weights.tokenizer.to_bytes().decode()
    arrays = {name: np.ascontiguousarray(array) for name, array in flat_params(weights.params).items()}
    content = safetensors.numpy.save(arrays, {_KEY: json.dumps(about)})
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def read_safetensors(path: str | os.PathLike[str]) -> Weights:
    """The weights of a file that `write_safetensors` made.

    Raises:
      UserError: no such file, a truncated or foreign one, or one whose parts do not fit each other.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a whole safetensors file: {error}") from error
    if _KEY not in metadata:
        raise UserError(f"{path}: is a safetensors file of another program, not of psann_jax")
    try:
        about = json.loads(metadata[_KEY])
        version = int(about["version"])
        if version > VERSION:
            raise UserError(f"{path}: has format {version}, but this psann_jax reads up to {VERSION}")
        config, saved = parse(upgrade_saved(about["config"])), about.get("tokenizer")
        tokenizer = None if saved is None else Tokenizer.from_bytes(saved.encode())
    except (KeyError, ValueError, TypeError, AttributeError, ConfigError) as error:
        raise UserError(f"{path}: its config or tokenizer cannot be read: {error}") from error
    return check_weights(Weights(config, nested_params(arrays), tokenizer), path)
