"""Weights of the checkpoints of the Newton Gravity Transformer's PyTorch trainer and of its vanilla baseline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psann_jax.config import require
from psann_jax.config.io import parse
from psann_jax.convert.ngt_names import from_ngt
from psann_jax.convert.torch_file import load_torch
from psann_jax.convert.weights import Weights, check_weights
from psann_jax.utils.errors import UserError

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_dim": "d_model",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "mlp_dim": "d_mlp",
    "max_seq_len": "n_positions",
    "coord_dim": "d_coord",
}


def is_ngt(path: Path) -> bool:
    """Whether a .pt file is such a checkpoint.

    Raises:
      UserError: see `load_torch`.
    """
    return "model_state" in load_torch(path)


def read_ngt(path: Path) -> Weights:
    """The weights of a checkpoint; its tokenizer is not read.

    Raises:
      UserError: no torch, no such file, a truncated or foreign one, a model without a counterpart here, or parameters
        of other sizes than the file says.
    """
    payload = load_torch(path)
    state, said = payload.get("model_state"), payload.get("config")
    if (
        not isinstance(state, Mapping)
        or not isinstance(said, Mapping)
        or not {"hidden_dim", "max_seq_len"} <= set(said)
    ):
        raise UserError(f"{path}: is not a checkpoint of a Newton Gravity Transformer")
    arrays = {name: t.detach().float().numpy() for name, t in state.items()}
    length = said["max_seq_len"]
    train = {"precision": "fp32", "batch_tokens": length}  # of which the file says nothing
    config = parse({"model": _model(said, arrays, path), "data": {"max_length": length}, "train": train})
    if any(name.endswith("coord_proj_next.weight") and a.shape[1] != said["hidden_dim"] for name, a in arrays.items()):
        raise UserError(
            f"{path}: is of version 0.1, whose coordinates follow the input of the attention; not supported"
        )
    return check_weights(Weights(config, from_ngt(arrays, config.model), None), path)


def _model(said: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    """The `model` section."""
    model: dict[str, Any] = {ours: said[theirs] for theirs, ours in _SIZES.items() if theirs in said}
    model |= {"dropout": float(said.get("dropout", 0.0)), "init": "reference"}
    if "coord_dim" not in said:
        return {"base": "vanilla", **model}
    soft, radius = said.get("use_soft_cutoff", False), said.get("use_radius_cutoff", True)
    require(radius or not soft, "cutoff", f"{path} asks for a soft cutoff without a radius")
    first = arrays.get("layers.0.attn.coord_proj_attn.weight")
    head = {} if first is None else {"d_head_coord": first.shape[0] // said["num_heads"]}
    return {
        "base": "ngt",
        **model,
        **head,
        "mass": "value" if said.get("mass_in_value") else "score",
        "cutoff": ("soft" if soft else "hard") if radius else "none",
        "rsqrt": bool(said.get("use_rsqrt", False)),
    }
