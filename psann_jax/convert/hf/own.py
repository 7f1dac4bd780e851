"""Names and config of the PyTorch code that is written into a folder for networks without a standard architecture."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psann_jax.config import TextModelConfig
from psann_jax.config.decoder import PRESETS
from psann_jax.convert.weights import flat_params, nested_params

# base -> file, model_type, and the start of the names of its classes.
_CODE = {
    **dict.fromkeys((*PRESETS, "vanilla"), ("modeling_psann.py", "psann_jax", "Psann")),
    "ngt": ("modeling_ngt.py", "psann_jax_ngt", "NGT"),
}
_TABLES = ("embed", "positions", "coords", "mass")  # parameters of nn.Embedding


def code_file(base: str) -> Path | None:
    """Returns the file with the PyTorch code of a base, or None if there is none."""
    return Path(__file__).with_name(_CODE[base][0]) if base in _CODE else None


def is_own(content: Mapping[str, Any]) -> bool:
    """Whether config.json describes a network of the PyTorch code of this package."""
    return content.get("model_type") in {model_type for _, model_type, _ in _CODE.values()}


def own_settings(model: TextModelConfig, section: dict[str, Any], max_length: int) -> dict[str, Any]:
    """Returns the content of config.json without token ids.

    Args:
      model: for which `code_file` returns a file; with resolved presets.
      section: the same as plain values.
      max_length: context length of the training.
    """
    file, model_type, name = _CODE[model.base]
    module = file.removesuffix(".py")
    return {
        "model_type": model_type,
        "architectures": [f"{name}ForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.{name}Config",
            "AutoModelForCausalLM": f"{module}.{name}ForCausalLM",
        },
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": False,  # the code has no second matrix to tie
        "settings": section,
    }


def to_own(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts nested parameters to a state dict of the PyTorch code."""
    arrays: dict[str, np.ndarray] = {}
    for path, stacked in flat_params(dict(params)).items():
        prefix, _, rest = path.partition(".")
        if prefix == "blocks":
            arrays |= {f"blocks.{i}.{_name(rest)}": _turned(rest, a) for i, a in enumerate(stacked)}
        else:
            arrays[_name(path)] = _turned(path, stacked)
    return {name: np.ascontiguousarray(a) for name, a in arrays.items()}


def _name(path: str) -> str:
    if path in (*_TABLES, "head"):
        return f"{path}.weight"
    return re.sub(r"\.(kernel|scale)$", ".weight", path)


def _turned(path: str, a: np.ndarray) -> np.ndarray:
    return a.T if path == "head" or path.endswith(".kernel") else a


def from_own(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts a state dict of the PyTorch code to nested parameters; the inverse of `to_own`.

    Raises:
      ValueError: the blocks of a parameter are not numbered 0 to n - 1.
    """
    flat: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, a in arrays.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        path = _path(match[2] if match else name, a)
        if match:
            layers.setdefault(f"blocks.{path}", {})[int(match[1])] = _turned(path, a)
        else:
            flat[path] = _turned(path, a)
    for path, by_layer in layers.items():
        if sorted(by_layer) != list(range(len(by_layer))):
            raise ValueError(f"{path} is in the blocks {', '.join(map(str, sorted(by_layer)))} only")
        flat[path] = np.stack([by_layer[i] for i in range(len(by_layer))])
    return nested_params({path: np.ascontiguousarray(a) for path, a in flat.items()})


def _path(name: str, a: np.ndarray) -> str:
    """Returns the dotted path of a parameter, the inverse of `_name`."""
    stem = name.removesuffix(".weight")
    if stem == name or stem in (*_TABLES, "head"):
        return stem
    return f"{stem}.{'scale' if a.ndim == 1 else 'kernel'}"
