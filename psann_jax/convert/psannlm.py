"""Reads psannlm's checkpoints: .pt files of its trainer and of psannLM.save, versions 0.12 and 2.0."""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from psann_jax.config import DecoderConfig, require
from psann_jax.config.decoder import saved_sine
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
    """An imported model differs from psannlm's, or its file lacks a setting."""


def read_psannlm(
    path: str | os.PathLike[str],
    *,
    n_heads: int | None = None,
    positional_encoding: str | None = None,
    max_length: int = 1024,
) -> Weights:
    """Reads the weights of a checkpoint of psannlm.

    Emits a `PsannlmWarning` if the model differs here: psannlm's wave blocks and spectral gates look ahead, those of
    psann_jax do not.

    Args:
      path: the .pt file.
      n_heads: required if the file does not contain it, as in the trainer's files before version 2.0.
      positional_encoding: rope, alibi or sinusoidal, if the file does not contain it; None means rope then.
      max_length: context length of the model's training, which no file contains.

    Raises:
      UserError: torch is not installed, the file is missing, of another program or contains code, or its model has no
        counterpart here.
    """
    path = Path(path)
    payload = load_torch(path)
    arrays, description = _parts(payload, path)
    model = _sizes(arrays, path)
    settings = _read_config(description, path)
    for name, value in (("n_heads", n_heads), ("positional_encoding", positional_encoding)):
        known = settings.get(name)
        require(value is None or known in (None, value), name, f"is {value}, but {known} in {path}")
        settings[name] = known if value is None else value
    require(settings["n_heads"] is not None, "n_heads", f"is missing; {path} does not contain it")
    if settings["positional_encoding"] is None:
        settings["positional_encoding"] = "rope"
        _warn(f"{path} does not contain positional_encoding; rope is assumed")
    model |= _architecture(arrays, settings, path)
    train = {"batch_tokens": max_length, "precision": "fp32"}
    config = parse({"model": model, "data": {"max_length": max_length}, "train": train})
    state = payload.get("tokenizer")
    tokenizer = None if state is None else tokenizer_from_state(state, path)
    return check_weights(Weights(config, from_psannlm(arrays, cast(DecoderConfig, config.model)), tokenizer), path)


def _parts(payload: Mapping[str, Any], path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """Returns the arrays by psannlm's names, and the config in the file, {} if there is none."""
    import torch

    found = payload.get("state_dict", payload.get("model", payload))
    description = payload.get("config")
    tensors = {name: t for name, t in found.items() if torch.is_tensor(t)} if isinstance(found, Mapping) else {}
    if not tensors or len(tensors) != len(found) or not isinstance(description, Mapping | None):
        raise UserError(f"{path}: is not a checkpoint of psannlm")
    return {_WRAPPERS.sub("", name): t.detach().float().numpy() for name, t in tensors.items()}, description or {}


def _sizes(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Returns the model's sizes, from the shapes of its arrays."""
    layers = [int(m[1]) for name in arrays if (m := re.match(r"blocks\.(\d+)\.", name))]
    if not layers or getattr(arrays.get("embed.weight"), "ndim", 0) != 2:
        raise UserError(f"{path}: has no language model of psannlm")
    vocab_size, d_model = arrays["embed.weight"].shape
    first = arrays.get("blocks.0.mlp.fc1.weight", arrays.get("blocks.0.mlp.0.weight"))
    sizes = {"vocab_size": vocab_size, "d_model": d_model, "n_layers": max(layers) + 1}
    return sizes if first is None else {**sizes, "d_mlp": first.shape[0]}


def _read_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the settings in a file's config, of either version, by the names of the `model` section."""
    if not config:
        return {}
    architecture = config.get("architecture")
    if architecture is None:  # 0.12, which saved more options, as overrides, but did not use them
        positions = config.get("positional_encoding") or ("sinusoidal" if config.get("rope") is False else "rope")
        settings = {"base": config.get("base"), "n_heads": config.get("n_heads"), "positional_encoding": positions}
        dropout = config.get("overrides", {}).get("dropout", 0.0)
        return {**settings, "sine": config.get("sine") or {}, "dropout": dropout}
    kind = architecture["kind"]
    if kind not in _KINDS:
        raise UserError(f"{path}: has a {kind} model, which has no counterpart here; only {', '.join(_KINDS)} have one")
    settings = {name: config[name] for name in ("n_heads", "positional_encoding", "dropout")}
    spectral, temporal, activation = (architecture.get(n) or {} for n in ("spectral", "temporal", "activation"))
    spread = architecture.get("activation_initialization") or {}
    sine: dict[str, Any] = {"decay_mode": activation["decay_mode"], "learnable": activation["learnable"]}
    for ours, theirs in _SINE.items():
        sine[f"{ours}_init"] = activation[f"{theirs}_init"]
        sine[f"{ours}_init_std"] = spread.get(f"{theirs}_std", 0.0)
        sine[f"{ours}_range"] = spread.get(f"{theirs}_range") or ()
        sine[f"{ours}_bounds"] = (activation.get("bounds") or {}).get(theirs) or ()
    settings |= {"base": "sgrpsann" if spectral else _KINDS[kind], "activation": activation["kind"], "sine": sine}
    gate = {"k_fft": "k_fft", "gate_type": "gate_type", "groups": "gate_groups"}
    gate |= {"init": "gate_init", "strength": "gate_strength"}
    settings["spectral"] = {ours: spectral[theirs] for theirs, ours in gate.items() if theirs in spectral}
    settings["wave"] = {name: temporal[name] for name in ("dilation_growth", "dropout") if name in temporal}
    return settings


def _architecture(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the options of the `model` section, with the parts of a block inferred from the arrays."""
    parts = {name.split(".")[2] for name in arrays if name.startswith("blocks.0.")}
    if not parts & {"mlp", "wave"}:
        raise UserError(f"{path}: its blocks are attention only (wave_replace), which no base here supports")
    base = "transformer" if "alpha" not in parts else "sgrpsann" if "spectral" in parts else settings.get("base")
    model: dict[str, Any] = {name: settings[name] for name in ("n_heads", "positional_encoding")}
    model |= {
        "base": base or ("waveresnet" if "wave" in parts else "respsann"),
        "dropout": settings.get("dropout", 0.0),
    }
    if "wave" in parts:
        model["base"] = "waveresnet"
        model["wave"] = _wave(arrays, settings, path, replace="mlp" not in parts)
    if "spectral" in parts:
        model["spectral"] = _spectral(arrays, settings, path)
    if any(name.startswith(("blocks.0.mlp.act._", "blocks.0.wave.act._")) for name in arrays):
        model["sine"] = saved_sine({name: _pair(value) for name, value in settings.get("sine", {}).items()})
    else:
        model["mlp_activation"] = settings.get("activation", "gelu")
    return model


def _pair(value: Any) -> Any:
    """Converts a pair of bounds, where psannlm writes None for a missing bound."""
    if not isinstance(value, list | tuple) or len(value) != 2 or isinstance(value[0], str):
        return value
    low, high = value
    return (0.0 if low is None else low, float("inf") if high is None else high)


def _wave(
    arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any], path: Path, *, replace: bool
) -> dict[str, Any]:
    kernel = arrays["blocks.0.wave.dw.weight"].shape[-1]
    if "wave" not in settings:
        _warn(f"{path} does not contain wave_dilation_growth; 1 is assumed")
    more = "; also, the wave branch has a residual connection here, but not in psannlm" if replace else ""
    _warn(
        f"{path}: psannlm's wave convolution sees {(kernel - 1) // 2} tokens ahead; here its {kernel} taps end at the "
        f"current token, so the logits differ and the model needs more training{more}"
    )
    return {"kernel": kernel, "replace" if replace else "interleave": True, **settings.get("wave", {})}


def _spectral(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    _warn(
        f"{path}: psannlm's spectral gate looks ahead and covers only the last k_fft tokens; here the same filter is "
        "causal and covers all tokens, so the logits differ and the model needs more training"
    )
    if "spectral" in settings:
        return dict(settings["spectral"])
    k_fft = 2 * (arrays["blocks.0.spectral.mask"].shape[-1] - 1)
    _warn(f"{path} does not contain its spectral settings; k_fft {k_fft}, rfft and strength 1 are assumed")
    depthwise = arrays["blocks.0.spectral.mix.weight"].shape[1] == 1
    return {"k_fft": k_fft, "gate_groups": "depthwise" if depthwise else "full"}


def _warn(message: str) -> None:
    warnings.warn(message, PsannlmWarning, stacklevel=4)
