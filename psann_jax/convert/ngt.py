"""Reads checkpoints of the Newton Gravity Transformer's PyTorch trainer and of its vanilla baseline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from psann_jax.config import VanillaConfig, require
from psann_jax.config.io import parse
from psann_jax.convert.ngt_names import from_ngt
from psann_jax.convert.torch_file import load_torch
from psann_jax.convert.weights import Weights, check_weights
from psann_jax.utils.errors import UserError

# Their config keys -> keys of the `model` section.
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
    """Whether a .pt file is a checkpoint of NGT's trainer.

    Raises:
      UserError: the file cannot be read, see `load_torch`.
    """
    return "model_state" in load_torch(path)


def read_ngt(path: Path) -> Weights:
    """Reads the weights of a checkpoint, without a tokenizer.

    Raises:
      UserError: torch is not installed, the file is missing, truncated or of another program, its model has no
        counterpart here, or its parameters contradict the sizes in its config.
    """
    payload = load_torch(path)
    state, settings = payload.get("model_state"), payload.get("config")
    if (
        not isinstance(state, Mapping)
        or not isinstance(settings, Mapping)
        or not {"hidden_dim", "max_seq_len"} <= set(settings)
    ):
        raise UserError(f"{path}: is not a checkpoint of a Newton Gravity Transformer")
    arrays = {name: t.detach().float().numpy() for name, t in state.items()}
    length = settings["max_seq_len"]
    train = {"precision": "fp32", "batch_tokens": length}  # not in the file
    config = parse({"model": _model(settings, arrays, path), "data": {"max_length": length}, "train": train})
    if any(
        name.endswith("coord_proj_next.weight") and a.shape[1] != settings["hidden_dim"] for name, a in arrays.items()
    ):
        raise UserError(
            f"{path}: is of version 0.1, which computes coordinates from the attention's input; not supported"
        )
    return check_weights(Weights(config, from_ngt(arrays, cast(VanillaConfig, config.model)), None), path)


def _model(settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Returns the `model` section."""
    model: dict[str, Any] = {ours: settings[theirs] for theirs, ours in _SIZES.items() if theirs in settings}
    model |= {"dropout": float(settings.get("dropout", 0.0)), "init": "reference"}
    if "coord_dim" not in settings:
        return {"base": "vanilla", **model}
    soft, radius = settings.get("use_soft_cutoff", False), settings.get("use_radius_cutoff", True)
    require(radius or not soft, "cutoff", f"{path} asks for a soft cutoff without a radius")
    first = arrays.get("layers.0.attn.coord_proj_attn.weight")
    head = {} if first is None else {"d_head_coord": first.shape[0] // settings["num_heads"]}
    return {
        "base": "ngt",
        **model,
        **head,
        "mass": "value" if settings.get("mass_in_value") else "score",
        "cutoff": ("soft" if soft else "hard") if radius else "none",
        "rsqrt": bool(settings.get("use_rsqrt", False)),
    }
