"""The parameter names of psannlm's PyTorch models, mapped to ours."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from psann_jax.config import DecoderConfig, require

# Their name -> (path in our tree, how their array becomes ours). Names of blocks lack "blocks.N.".
_TRANSPOSE, _SAME = (lambda a: a.T), (lambda a: a)
_TOP = {
    "embed.weight": ("embed", _SAME),
    "lm_head.weight": ("head", _TRANSPOSE),
    "ln_f.scale": ("norm.scale", _SAME),
    "ln_f.weight": ("norm.scale", _SAME),
    "ln_f.bias": ("norm.bias", _SAME),
}
_BLOCK = {
    "alpha": ("alpha", _SAME),
    **{f"attn.{p}_proj.weight": (f"attn.{p}.kernel", _TRANSPOSE) for p in "qkvo"},
    **{f"norm{i}.scale": (f"norm{i}.scale", _SAME) for i in (1, 2)},
    **{f"norm{i}.weight": (f"norm{i}.scale", _SAME) for i in (1, 2)},
    **{f"norm{i}.bias": (f"norm{i}.bias", _SAME) for i in (1, 2)},
    **{
        f"mlp.{theirs}.{kind}": (f"mlp.{ours}.{'kernel' if kind == 'weight' else 'bias'}", _TRANSPOSE)
        for theirs, ours in (("fc1", "fc1"), ("fc2", "fc2"), ("0", "fc1"), ("2", "fc2"))
        for kind in ("weight", "bias")
    },
    **{
        f"{module}.act._{letter}": (f"{module}.act.{name}", _SAME)
        for module in ("mlp", "wave")
        for letter, name in (("A", "amplitude"), ("f", "frequency"), ("d", "decay"))
    },
    "spectral.mask": ("gate.mask", _SAME),
    "spectral.mix.weight": ("gate.mix", lambda a: a[:, 0, 0] if a.shape[1] == 1 else a[:, :, 0].T),
    # Their convolution counts taps from the oldest token, ours from the newest.
    "wave.dw.weight": ("wave.conv", lambda a: a[:, 0, ::-1].T),
    "wave.proj.weight": ("wave.proj.kernel", _TRANSPOSE),
    "wave.proj.bias": ("wave.proj.bias", _SAME),
    "wave.norm.scale": ("wave.norm.scale", _SAME),
}


def from_psannlm(arrays: Mapping[str, np.ndarray], config: DecoderConfig) -> dict[str, Any]:
    """Our nested parameters from psannlm's state dict; gradients map the same way.

    Args:
      arrays: their names to arrays; Linear weights are (out, in).
      config: of the model that the parameters are for.

    Raises:
      ConfigError: a name that no model here has, or blocks that do not fit model.n_layers.
    """
    flat: dict[str, Any] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        table, key = (_BLOCK, match[2]) if match else (_TOP, name)
        require(key in table, "model", f"psannlm parameter {name!r} has no counterpart")
        path, convert = table[key]
        if match:
            layers.setdefault(f"blocks.{path}", {})[int(match[1])] = convert(array)
        else:
            flat[path] = convert(array)
    for path, by_layer in layers.items():
        require(sorted(by_layer) == list(range(config.n_layers)), "model.n_layers", f"is {config.n_layers}, {path} not")
        flat[path] = np.stack([by_layer[i] for i in range(config.n_layers)])
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.ascontiguousarray(value)
    return nested
