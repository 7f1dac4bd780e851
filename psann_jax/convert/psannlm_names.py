"""Mapping of psannlm's PyTorch parameter names to ours."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from psann_jax.config import DecoderConfig
from psann_jax.convert.renaming import Renaming, Table, identity, transpose

_TOP: Table = {
    "embed.weight": ("embed", identity),
    "lm_head.weight": ("head", transpose),
    "ln_f.scale": ("norm.scale", identity),
    "ln_f.weight": ("norm.scale", identity),
    "ln_f.bias": ("norm.bias", identity),
}
_BLOCK: Table = {
    "alpha": ("alpha", identity),
    **{f"attn.{p}_proj.weight": (f"attn.{p}.kernel", transpose) for p in "qkvo"},
    **{f"norm{i}.scale": (f"norm{i}.scale", identity) for i in (1, 2)},
    **{f"norm{i}.weight": (f"norm{i}.scale", identity) for i in (1, 2)},
    **{f"norm{i}.bias": (f"norm{i}.bias", identity) for i in (1, 2)},
    **{
        f"mlp.{theirs}.{kind}": (f"mlp.{ours}.{'kernel' if kind == 'weight' else 'bias'}", transpose)
        for theirs, ours in (("fc1", "fc1"), ("fc2", "fc2"), ("0", "fc1"), ("2", "fc2"))
        for kind in ("weight", "bias")
    },
    **{
        f"{module}.act._{letter}": (f"{module}.act.{name}", identity)
        for module in ("mlp", "wave")
        for letter, name in (("A", "amplitude"), ("f", "frequency"), ("d", "decay"))
    },
    "spectral.mask": ("gate.mask", identity),
    "spectral.mix.weight": ("gate.mix", lambda a: a[:, 0, 0] if a.shape[1] == 1 else a[:, :, 0].T),
    # Their convolution orders taps from the oldest token, ours from the newest.
    "wave.dw.weight": ("wave.conv", lambda a: a[:, 0, ::-1].T),
    "wave.proj.weight": ("wave.proj.kernel", transpose),
    "wave.proj.bias": ("wave.proj.bias", identity),
    "wave.norm.scale": ("wave.norm.scale", identity),
}


def from_psannlm(arrays: Mapping[str, np.ndarray], config: DecoderConfig) -> dict[str, Any]:
    """Converts psannlm's state dict to nested parameters; see `Renaming.nested`."""
    return Renaming("psannlm", "blocks", _TOP, _BLOCK).nested(arrays, config.n_layers)
