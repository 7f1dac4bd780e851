"""Weights of psannlm's checkpoints: the trainer's .pt files and those of psannLM.save, of versions 0.12 and 2.0."""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psann_jax.config import require
from psann_jax.config.io import parse
from psann_jax.convert.psannlm_names import from_psannlm
from psann_jax.convert.psannlm_tokenizer import tokenizer_from_state
from psann_jax.convert.torch_file import load_torch
from psann_jax.convert.weights import Weights, check_weights
from psann_jax.utils.errors import UserError

_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|_fsdp_wrapped_module\.)+")
_KINDS = {"transformer": "transformer", "residual": "respsann", "wave": "waveresnet"}
_SINE = {"amp": "amplitude", "freq": "frequency", "damp": "decay"}


class PsannlmWarning(UserWarning):
    """What an imported model does otherwise than psannlm, or what its file does not say."""


def read_psannlm(
    path: str | os.PathLike[str],
    *,
    n_heads: int | None = None,
    positional_encoding: str | None = None,
    max_length: int = 1024,
) -> Weights:
    """The weights of a checkpoint of psannlm.

    Warns with `PsannlmWarning` where the model here is not the one there: psannlm's wave blocks and spectral gates
    look ahead, those here do not.

    Args:
      path: of the file.
      n_heads: needed where the file does not say, as in the trainer's files before version 2.0.
      positional_encoding: likewise; None is rope there.
      max_length: the context that the model was trained with; no file says.

    Raises:
      UserError: no torch, no such file, a file of something else or with other code in it, or a model without a
        counterpart here.
    """
    path = Path(path)
    payload = load_torch(path)
    arrays, description = _parts(payload, path)
    model = _sizes(arrays, path)
    said = _described(description, path)
    for name, value in (("n_heads", n_heads), ("positional_encoding", positional_encoding)):
        known = said.get(name)
        require(value is None or known in (None, value), name, f"is {value}, but {path} says {known}")
        said[name] = known if value is None else value
    require(said["n_heads"] is not None, "n_heads", f"{path} does not say; give it")
    if said["positional_encoding"] is None:
        said["positional_encoding"] = "rope"
        _warn(f"{path} does not say its positional_encoding: taken to be rope")
    model |= _architecture(arrays, said, path)
    train = {"batch_tokens": max_length, "precision": "fp32"}
    config = parse({"model": model, "data": {"max_length": max_length}, "train": train})
    kept = payload.get("tokenizer")
    tokenizer = None if kept is None else tokenizer_from_state(kept, path)
    return check_weights(Weights(config, from_psannlm(arrays, config.model), tokenizer), path)


def _parts(payload: Mapping[str, Any], path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """The arrays by psannlm's names, and what the file says of the model, {} if nothing."""
    import torch

    found = payload.get("state_dict", payload.get("model", payload))
    description = payload.get("config")
    tensors = {name: t for name, t in found.items() if torch.is_tensor(t)} if isinstance(found, Mapping) else {}
    if not tensors or len(tensors) != len(found) or not isinstance(description, Mapping | None):
        raise UserError(f"{path}: is not a checkpoint of psannlm")
    return {_WRAPPERS.sub("", name): t.detach().float().numpy() for name, t in tensors.items()}, description or {}


def _sizes(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Sizes of the model by the shapes of its arrays."""
    layers = [int(m[1]) for name in arrays if (m := re.match(r"blocks\.(\d+)\.", name))]
    if not layers or getattr(arrays.get("embed.weight"), "ndim", 0) != 2:
        raise UserError(f"{path}: holds no language model of psannlm")
    vocab_size, d_model = arrays["embed.weight"].shape
    first = arrays.get("blocks.0.mlp.fc1.weight", arrays.get("blocks.0.mlp.0.weight"))
    sizes = {"vocab_size": vocab_size, "d_model": d_model, "n_layers": max(layers) + 1}
    return sizes if first is None else {**sizes, "d_mlp": first.shape[0]}


def _described(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What either version of a file's config says, by the names of the `model` section."""
    if not config:
        return {}
    architecture = config.get("architecture")
    if architecture is None:  # 0.12; it kept other options too, as overrides, but built the model without them
        positions = config.get("positional_encoding") or ("sinusoidal" if config.get("rope") is False else "rope")
        said = {"base": config.get("base"), "n_heads": config.get("n_heads"), "positional_encoding": positions}
        return {**said, "sine": config.get("sine") or {}, "dropout": config.get("overrides", {}).get("dropout", 0.0)}
    kind = architecture["kind"]
    if kind not in _KINDS:
        raise UserError(f"{path}: holds a {kind} model, which has no counterpart here; only {', '.join(_KINDS)} have")
    said = {name: config[name] for name in ("n_heads", "positional_encoding", "dropout")}
    spectral, temporal, activation = (architecture.get(n) or {} for n in ("spectral", "temporal", "activation"))
    spread = architecture.get("activation_initialization") or {}
    sine: dict[str, Any] = {"decay_mode": activation["decay_mode"], "learnable": activation["learnable"]}
    for ours, theirs in _SINE.items():
        sine[f"{ours}_init"] = activation[f"{theirs}_init"]
        sine[f"{ours}_init_std"] = spread.get(f"{theirs}_std", 0.0)
        sine[f"{ours}_range"] = spread.get(f"{theirs}_range") or ()
        sine[f"{ours}_bounds"] = (activation.get("bounds") or {}).get(theirs) or ()
    said |= {"base": "sgrpsann" if spectral else _KINDS[kind], "activation": activation["kind"], "sine": sine}
    gate = {"k_fft": "k_fft", "gate_type": "gate_type", "groups": "gate_groups"}
    gate |= {"init": "gate_init", "strength": "gate_strength"}
    said["spectral"] = {ours: spectral[theirs] for theirs, ours in gate.items() if theirs in spectral}
    said["wave"] = {name: temporal[name] for name in ("dilation_growth", "dropout") if name in temporal}
    return said


def _architecture(arrays: Mapping[str, np.ndarray], said: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options of the `model` section; which parts there are, the arrays tell."""
    parts = {name.split(".")[2] for name in arrays if name.startswith("blocks.0.")}
    if not parts & {"mlp", "wave"}:
        raise UserError(f"{path}: its blocks are attention only (wave_replace), which no base here is")
    base = "transformer" if "alpha" not in parts else "sgrpsann" if "spectral" in parts else said.get("base")
    model: dict[str, Any] = {name: said[name] for name in ("n_heads", "positional_encoding")}
    model |= {"base": base or ("waveresnet" if "wave" in parts else "respsann"), "dropout": said.get("dropout", 0.0)}
    if "wave" in parts:
        model["base"] = "waveresnet"
        model["wave"] = _wave(arrays, said, path, replace="mlp" not in parts)
    if "spectral" in parts:
        model["spectral"] = _spectral(arrays, said, path)
    if any(name.startswith(("blocks.0.mlp.act._", "blocks.0.wave.act._")) for name in arrays):
        model["sine"] = {name: _pair(value) for name, value in said.get("sine", {}).items()}
    else:
        model["mlp_activation"] = said.get("activation", "gelu")
    return model


def _pair(value: Any) -> Any:
    """Bounds, in which psannlm writes None for no bound."""
    if not isinstance(value, list | tuple) or len(value) != 2 or isinstance(value[0], str):
        return value
    low, high = value
    return (0.0 if low is None else low, float("inf") if high is None else high)


def _wave(arrays: Mapping[str, np.ndarray], said: Mapping[str, Any], path: Path, *, replace: bool) -> dict[str, Any]:
    kernel = arrays["blocks.0.wave.dw.weight"].shape[-1]
    if "wave" not in said:
        _warn(f"{path} does not say its wave_dilation_growth: taken to be 1")
    more = "; and here the residual goes past the wave branch, there it does not" if replace else ""
    _warn(
        f"{path}: psannlm's wave convolution sees {(kernel - 1) // 2} taps ahead; here the same {kernel} taps end at "
        f"the token itself, so the logits differ and the model wants more training{more}"
    )
    return {"kernel": kernel, "replace" if replace else "interleave": True, **said.get("wave", {})}


def _spectral(arrays: Mapping[str, np.ndarray], said: Mapping[str, Any], path: Path) -> dict[str, Any]:
    _warn(
        f"{path}: psannlm's spectral gate sees ahead, and only the last k_fft tokens; here the same filter sees back, "
        "from every token, so the logits differ and the model wants more training"
    )
    if "spectral" in said:
        return dict(said["spectral"])
    k_fft = 2 * (arrays["blocks.0.spectral.mask"].shape[-1] - 1)
    _warn(f"{path} does not say its spectral gate: taken to be k_fft {k_fft}, rfft, strength 1")
    depthwise = arrays["blocks.0.spectral.mix.weight"].shape[1] == 1
    return {"k_fft": k_fft, "gate_groups": "depthwise" if depthwise else "full"}


def _warn(message: str) -> None:
    warnings.warn(message, PsannlmWarning, stacklevel=4)
