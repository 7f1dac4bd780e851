"""Names and layouts of parameters in the standard architectures of `transformers`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from psann_jax.config import DecoderConfig
from psann_jax.convert.renaming import Renaming, Table, identity, transpose

_NORMS = ("input_layernorm", "post_attention_layernorm")  # of the attention, of the MLP
_APERTUS_NORMS = ("attention_layernorm", "feedforward_layernorm")
_MLP = {"up_proj": "fc1", "down_proj": "fc2", "gate_proj": "fc_gate"}
# Older versions of `transformers` saved these constants, too.
_CONSTANTS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_NEOX_MLP = {"dense_h_to_4h": "fc1", "dense_4h_to_h": "fc2"}


def halves(a: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorders the first axis, H * K features: pairs (2i, 2i+1) of a head become (i, i + K/2).

    Rotary positions turn the former here, the latter in `transformers`.
    """
    return a.reshape(n_heads, -1, 2, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape)


def pairs(a: np.ndarray, n_heads: int) -> np.ndarray:
    """The inverse of `halves`."""
    return a.reshape(n_heads, 2, -1, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape)


def from_standard(name: str, arrays: Mapping[str, np.ndarray], model: DecoderConfig) -> dict[str, Any]:
    """Converts a state dict to nested parameters; see `Renaming.nested`.

    Args:
      name: a key of `psann_jax.convert.hf.standard.ARCHITECTURES`.
      arrays: float32, by their names.
      model: with resolved presets.
    """
    arrays = {key: a for key, a in arrays.items() if not key.endswith(_CONSTANTS)}
    if name == "gpt_neox":
        arrays = _split_attention(arrays, model.n_heads)
    if model.tied_embeddings:
        arrays = {key: a for key, a in arrays.items() if key not in ("lm_head.weight", "embed_out.weight")}
    return _renaming(name, model, lambda a, n_heads: pairs(a, n_heads).T).nested(arrays, model.n_layers)


def to_standard(name: str, params: Mapping[str, Any], model: DecoderConfig) -> dict[str, np.ndarray]:
    """Converts nested parameters to a state dict; the inverse of `from_standard`."""
    arrays = _renaming(name, model, lambda a, n_heads: halves(a.T, n_heads)).flat(params, model.n_layers)
    return _join_attention(arrays, model.n_heads) if name == "gpt_neox" else arrays


def _renaming(name: str, model: DecoderConfig, order: Callable[..., np.ndarray]) -> Renaming:
    """Returns the table of names.

    Args:
      name: of the architecture.
      model: with resolved presets.
      order: converts a kernel or its weight, and a scale, whose features are those of a number of heads.
    """
    is_neox = name == "gpt_neox"
    body, attention, output = ("gpt_neox", "attention", "embed_out") if is_neox else ("model", "self_attn", "lm_head")
    embedding, final = ("embed_in", "final_layer_norm") if is_neox else ("embed_tokens", "norm")
    top: Table = {f"{body}.{embedding}.weight": ("embed", identity), **_norm(f"{body}.{final}", "norm")}
    top[f"{output}.weight"] = ("head", transpose)
    block: Table = {f"{attention}.{p}_proj.weight": (f"attn.{p}.kernel", transpose) for p in "vo"}
    for p, n in (("q", model.n_heads), ("k", model.kv_heads)):
        block[f"{attention}.{p}_proj.weight"] = (f"attn.{p}.kernel", partial(order, n_heads=n))
        block[f"{attention}.{p}_norm.weight"] = (f"attn.{p}_norm.scale", partial(order, n_heads=1))
    norms = _APERTUS_NORMS if name == "apertus" else _NORMS
    for ours, theirs in zip(("norm1", "norm2"), norms, strict=True):
        block |= _norm(theirs, ours)
    for theirs, ours in (_NEOX_MLP if is_neox else _MLP).items():
        block[f"mlp.{theirs}.weight"] = (f"mlp.{ours}.kernel", transpose)
        block[f"mlp.{theirs}.bias"] = (f"mlp.{ours}.bias", identity)
    return Renaming(name, f"{body}.layers", top, block)


def _norm(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (f"{ours}.scale", identity), f"{theirs}.bias": (f"{ours}.bias", identity)}


def _split_attention(arrays: Mapping[str, np.ndarray], n_heads: int) -> dict[str, np.ndarray]:
    """Splits GPT-NeoX's joint projection, whose rows are (head, query or key or value, feature)."""
    result: dict[str, np.ndarray] = {}
    for name, a in arrays.items():
        if name.endswith(".query_key_value.weight"):
            parts = a.reshape(n_heads, 3, -1, a.shape[-1])
            prefix = name.removesuffix("query_key_value.weight")
            result |= {f"{prefix}{p}_proj.weight": parts[:, i].reshape(-1, a.shape[-1]) for i, p in enumerate("qkv")}
        else:
            result[name.replace(".attention.dense.", ".attention.o_proj.")] = a
    return result


def _join_attention(arrays: Mapping[str, np.ndarray], n_heads: int) -> dict[str, np.ndarray]:
    """The inverse of `_split_attention`."""
    result = {name.replace(".o_proj.", ".dense."): a for name, a in arrays.items()}
    for name in [name for name in result if name.endswith(".q_proj.weight")]:
        prefix = name.removesuffix("q_proj.weight")
        parts = [result.pop(f"{prefix}{p}_proj.weight") for p in "qkv"]
        width = parts[0].shape[-1]
        joint = np.stack([part.reshape(n_heads, -1, width) for part in parts], axis=1)
        result[f"{prefix}query_key_value.weight"] = joint.reshape(-1, width)
    return result
