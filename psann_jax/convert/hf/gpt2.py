"""GPT-2 of `transformers` as the base vanilla, whose blocks it has; its head has no bias, which is then zero."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psann_jax.config import VanillaConfig
from psann_jax.convert.hf.settings import positive, require_value
from psann_jax.convert.renaming import Renaming, Table, identity

MODEL_TYPE = "gpt2"
# Keys of the `model` section -> of config.json, with their defaults.
_SIZES = {
    "vocab_size": ("vocab_size", 50257),
    "d_model": ("n_embd", 768),
    "n_layers": ("n_layer", 12),
    "n_heads": ("n_head", 12),
    "n_positions": ("n_positions", 1024),
}
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
# Settings without a counterpart here, each with its only value, which is their default.
_FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_CONSTANTS = (".attn.bias", ".attn.masked_bias")  # the causal mask, which older versions of `transformers` saved, too
_QKV = ("q", "k", "v")
_TOP: Table = {
    "wte.weight": ("embed", identity),
    "wpe.weight": ("positions", identity),
    "ln_f.weight": ("norm.scale", identity),
    "ln_f.bias": ("norm.bias", identity),
}
_LAYERS = {**{f"attn.{p}": f"attn.{p}" for p in _QKV}, "attn.c_proj": "attn.o", "mlp.c_fc": "mlp.fc1"}
_LAYERS |= {"mlp.c_proj": "mlp.fc2"}
_BLOCK: Table = {
    **{f"ln_{i}.weight": (f"norm{i}.scale", identity) for i in (1, 2)},
    **{f"ln_{i}.bias": (f"norm{i}.bias", identity) for i in (1, 2)},
    # Its layers are of the class Conv1D, whose weights are (in, out), as here.
    **{f"{theirs}.weight": (f"{ours}.kernel", identity) for theirs, ours in _LAYERS.items()},
    **{f"{theirs}.bias": (f"{ours}.bias", identity) for theirs, ours in _LAYERS.items()},
}


def read_gpt2_settings(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the `model` section.

    Args:
      content: of config.json.
      path: of the file, for messages.

    Raises:
      UserError: a setting has no counterpart here; the message names it.
    """
    sizes = {ours: positive(content, key, path, default) for ours, (key, default) in _SIZES.items()}
    for key, value in _FIXED.items():
        given = content.get(key, value)
        require_value(given == value, key, given, value, path)
    activation = content.get("activation_function", "gelu_new")
    is_known = isinstance(activation, str) and activation in _ACTIVATIONS
    require_value(is_known, "activation_function", activation, " or ".join(_ACTIVATIONS), path)
    has_width = content.get("n_inner") is not None
    d_mlp = positive(content, "n_inner", path) if has_width else 4 * sizes["d_model"]
    return {"base": "vanilla", **sizes, "d_mlp": d_mlp, "mlp_activation": _ACTIVATIONS[activation]}


def from_gpt2(arrays: Mapping[str, np.ndarray], model: VanillaConfig) -> dict[str, Any]:
    """Converts a state dict to nested parameters; see `Renaming.nested`.

    Args:
      arrays: float32, by their names, with or without "transformer." before them.
      model: from `read_gpt2_settings`.
    """
    own: dict[str, np.ndarray] = {}
    for key, a in arrays.items():
        name = key.removeprefix("transformer.")
        prefix, joint, kind = name.rpartition("c_attn.")
        if name == "lm_head.weight" or name.endswith(_CONSTANTS):
            continue
        if joint:
            parts = np.split(a, len(_QKV), axis=-1)
            own |= {f"{prefix}{p}.{kind}": part for p, part in zip(_QKV, parts, strict=True)}
        else:
            own[name] = a
    nested = Renaming(MODEL_TYPE, "h", _TOP, _BLOCK).nested(own, model.n_layers)
    return nested | {"head_bias": np.zeros(model.vocab_size, np.float32)}
