"""Mapping of the Newton Gravity Transformer's PyTorch parameter names to ours."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from psann_jax.config import VanillaConfig
from psann_jax.convert.renaming import Renaming, Table, identity, transpose


def _linear(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (f"{ours}.kernel", transpose), f"{theirs}.bias": (f"{ours}.bias", identity)}


def _norm(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": (f"{ours}.scale", identity), f"{theirs}.bias": (f"{ours}.bias", identity)}


_TOP: Table = {
    "token_emb.weight": ("embed", identity),
    "pos_emb.weight": ("positions", identity),
    "mass_emb.weight": ("mass", identity),
    "coord_emb.weight": ("coords", identity),
    "head.bias": ("head_bias", identity),
    **_norm("norm", "norm"),
}
_BLOCK: Table = {
    **{
        f"attn.{theirs}": (f"attn.{ours}", lambda a: a.reshape(-1))
        for theirs, ours in (("gamma", "gamma"), ("gravity_bias", "bias"), ("radius_param", "radius"))
    },
    **{k: v for p in "qkv" for k, v in _linear(f"attn.{p}_proj", f"attn.{p}").items()},
    **_linear("attn.out_proj", "attn.o"),
    **_linear("attn.coord_proj_attn", "attn.coords"),
    **_linear("attn.coord_proj_next", "next"),
    **_linear("ffn.net.0", "mlp.fc1"),
    **_linear("ffn.net.3", "mlp.fc2"),
    **_norm("norm1", "norm1"),
    **_norm("norm2", "norm2"),
    **_norm("coord_norm", "coord_norm"),
}


def from_ngt(arrays: Mapping[str, np.ndarray], config: VanillaConfig) -> dict[str, Any]:
    """Converts a state dict of an NGT or its vanilla baseline to nested parameters; see `Renaming.nested`.

    The head's weight is omitted, because it is tied to the embedding.
    """
    own = {name: array for name, array in arrays.items() if name != "head.weight"}
    return Renaming("NGT", "layers", _TOP, _BLOCK).nested(own, config.n_layers)
