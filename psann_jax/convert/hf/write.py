"""Writes a folder that `transformers` loads."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from psann_jax.config import DecoderConfig, TextModelConfig
from psann_jax.config.io import to_dict
from psann_jax.convert.hf.card import model_card
from psann_jax.convert.hf.own import code_file, own_settings, to_own
from psann_jax.convert.hf.standard import standard_settings, standard_type
from psann_jax.convert.hf.standard_names import to_standard
from psann_jax.convert.weights import Weights
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.sample.settings import GenerationOptions
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, storage_errors, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_folder(folder: str | os.PathLike[str], weights: Weights, origin: str) -> None:
    """Writes weights in float32, config, tokenizer, settings of generation and a model card.

    A network that equals an architecture of `transformers` is written as one (`psann_jax.convert.hf.standard`). For
    others the folder has its own PyTorch code, which `trust_remote_code=True` runs.

    Args:
      folder: new or empty.
      weights: to write; without a tokenizer, the folder has none.
      origin: where they come from, for the model card.

    Raises:
      UserError: the folder is not empty or cannot be written, or there is no PyTorch code for the base.
    """
    folder = Path(folder)
    with storage_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: is not an empty directory; choose a new one")
    model = weights.network().config
    if isinstance(model, DecoderConfig):
        model = model.resolve()
    code, settings, arrays = _converted(model, weights)
    tokenizer = weights.tokenizer
    files = {} if tokenizer is None else tokenizer_files(tokenizer, weights.config.data.max_length)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / WEIGHTS, safetensors.numpy.save(arrays, {"format": "pt"}))
        if code is not None:
            atomic_write(folder / code.name, code.read_bytes())
        atomic_write(folder / "README.md", model_card(weights, model, folder.name, origin, is_standard=code is None))
    ids = {} if tokenizer is None else _token_ids(tokenizer)
    write_json(folder / "generation_config.json", ids | {"max_new_tokens": GenerationOptions.max_new_tokens})
    for name, content in files.items():
        write_json(folder / name, content)
    write_json(folder / CONFIG, settings | ids | {"dtype": "float32"})


def _converted(model: TextModelConfig, weights: Weights) -> tuple[Path | None, dict[str, Any], dict[str, np.ndarray]]:
    """Returns the file of PyTorch code, if it is needed, the content of config.json and the state dict."""
    max_length = weights.config.data.max_length
    code = code_file(model.base)
    if code is None:
        raise UserError(f"model.base: is {model.base}, for which there is no PyTorch code")
    if isinstance(model, DecoderConfig) and (name := standard_type(model)) is not None:
        return None, standard_settings(model, max_length), to_standard(name, weights.params, model)
    section = to_dict(dataclasses.replace(weights.config, model=model))["model"]
    return code, own_settings(model, section, max_length), to_own(weights.params)


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}


def tokenizer_files(tokenizer: Tokenizer, max_length: int) -> dict[str, dict[str, Any]]:
    """Returns the files, by name, from which `AutoTokenizer` makes a tokenizer with the same ids.

    It puts bos before a text, as training and generation do, and encodes the names of special tokens as text.
    """
    names = tokenizer.names
    return {
        "tokenizer.json": tokenizer.tokenizer_json(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{role}_token": name for role, name in names.items()},
            "model_max_length": max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "left",
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        },
    }
