"""Reads a folder that `transformers` wrote, or `psann_jax.convert.hf.write`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from psann_jax.config import Config, ConfigError
from psann_jax.config.io import parse
from psann_jax.convert.hf.gpt2 import MODEL_TYPE, from_gpt2, read_gpt2_settings
from psann_jax.convert.hf.own import from_own, is_own
from psann_jax.convert.hf.settings import positive
from psann_jax.convert.hf.standard import read_settings
from psann_jax.convert.hf.standard_names import from_standard
from psann_jax.convert.hf.write import CONFIG, WEIGHTS
from psann_jax.convert.safetensors_file import read_arrays
from psann_jax.convert.weights import Weights, check_weights
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.utils.errors import UserError, one_line
from psann_jax.utils.files import read_json

_INDEX = f"{WEIGHTS}.index.json"


def read_folder(folder: str | os.PathLike[str]) -> Weights:
    """Reads weights, config and tokenizer of a folder.

    Args:
      folder: with config.json and model.safetensors, the latter possibly in parts with an index.

    Raises:
      UserError: a file is missing or damaged, or the model has a setting without a counterpart here.
    """
    folder = Path(folder)
    path = folder / CONFIG
    content = read_json(path)
    try:
        arrays = _arrays(folder)
        config = _config(content, path)
        model = cast(Any, config.model)
        if is_own(content):
            params = from_own(arrays)
        elif content["model_type"] == MODEL_TYPE:
            params = from_gpt2(arrays, model)
        else:
            params = from_standard(content["model_type"], arrays, model.resolve())
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # wrong types or shapes
        raise UserError(f"{folder}: its files do not describe a model: {one_line(error)}") from error
    return check_weights(Weights(config, params, _tokenizer(folder)), folder)


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    if not (folder / _INDEX).exists():
        return read_arrays(folder / WEIGHTS)
    parts = sorted(set(read_json(folder / _INDEX).get("weight_map", {}).values()))
    return {name: a for part in parts for name, a in read_arrays(folder / part).items()}


def _config(content: Mapping[str, Any], path: Path) -> Config:
    """Returns the config, with the settings of training at their defaults."""
    if content.get("model_type") == MODEL_TYPE:
        model = read_gpt2_settings(content, path)
        length = model["n_positions"]
    else:
        model = content["settings"] if is_own(content) else read_settings(content, path)
        length = positive(content, "max_position_embeddings", path)
    train = {"precision": "fp32", "batch_tokens": length}  # not in the file
    return parse({"model": model, "data": {"max_length": length}, "train": train})


def _tokenizer(folder: Path) -> Tokenizer | None:
    """Returns the tokenizer of a folder, or None if it has no tokenizer.json."""
    return Tokenizer.load(folder) if (folder / "tokenizer.json").exists() else None
