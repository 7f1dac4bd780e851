"""The architectures of `transformers` that equal a decoder of this project, and their settings.

Each has rotary positions, attention without biases and pre-norm blocks:

| model_type | norm | MLP | norm of queries and keys |
|---|---|---|---|
| apertus | RMSNorm | without gate, without biases | yes |
| arcee | RMSNorm | without gate | no |
| gpt_neox | LayerNorm | without gate, with biases | no |
| llama | RMSNorm | SwiGLU | no |
| qwen3 | RMSNorm | SwiGLU, without biases | yes |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psann_jax.config import DecoderConfig
from psann_jax.convert.hf.settings import positive, require_value
from psann_jax.nn.positions import ROPE_BASE
from psann_jax.utils.errors import UserError

_ACTIVATIONS = ("gelu", "relu", "relu2", "silu")  # without a gate; `transformers` has the same names for them
_MISSING = object()


@dataclass(frozen=True)
class Architecture:
    """An architecture of `transformers`.

    Attributes:
      class_name: the class that `AutoModelForCausalLM` makes.
      activations: values of mlp_activation.
      norm: value of norm.
      qk_norm: value of qk_norm.
      biases: values of bias.
      grouped: whether keys and values may have fewer heads than queries.
      eps: name of the epsilon of the norms, and its default.
      others: settings without a counterpart here, each with its only value and its default.
    """

    class_name: str
    activations: tuple[str, ...] = _ACTIVATIONS
    norm: str = "rmsnorm"
    qk_norm: bool = False
    biases: tuple[bool, ...] = (False, True)
    grouped: bool = True
    eps: tuple[str, float] = ("rms_norm_eps", 1e-6)
    others: Mapping[str, tuple[Any, Any]] = field(default_factory=lambda: {"attention_bias": (False, False)})

    def fits(self, model: DecoderConfig) -> bool:
        """Whether the architecture computes the same as a model whose presets are resolved."""
        return (
            model.mlp_activation in self.activations
            and model.norm == self.norm
            and model.qk_norm is self.qk_norm
            and model.bias in self.biases
            and (self.grouped or model.kv_heads == model.n_heads)
        )


ARCHITECTURES = {
    "apertus": Architecture("ApertusForCausalLM", qk_norm=True, biases=(False,), eps=("rms_norm_eps", 1e-5)),
    "arcee": Architecture("ArceeForCausalLM", eps=("rms_norm_eps", 1e-5)),
    "gpt_neox": Architecture(
        "GPTNeoXForCausalLM",
        norm="layernorm",
        biases=(True,),
        grouped=False,
        eps=("layer_norm_eps", 1e-5),
        others={"attention_bias": (False, True), "use_parallel_residual": (False, True)},
    ),
    "llama": Architecture("LlamaForCausalLM", activations=("swiglu",)),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        activations=("swiglu",),
        qk_norm=True,
        biases=(False,),
        others={"attention_bias": (False, False), "use_sliding_window": (False, False)},
    ),
}
_EPS = {"rmsnorm": 1e-6, "layernorm": 1e-5}  # of `psann_jax.nn.norm`


def standard_type(model: DecoderConfig) -> str | None:
    """Returns the model_type of the architecture that equals a model whose presets are resolved, or None."""
    plain = (
        model.positional_encoding == "rope"
        and not (model.residual_alpha or model.sliding_window or model.logit_softcap)
        and not (model.wave.interleave or model.wave.replace)
        and model.base != "sgrpsann"
    )
    return next((name for name, found in ARCHITECTURES.items() if plain and found.fits(model)), None)


def standard_settings(model: DecoderConfig, max_length: int) -> dict[str, Any]:
    """Returns the content of config.json without token ids.

    Args:
      model: for which `standard_type` finds an architecture.
      max_length: context length of the training.
    """
    name = standard_type(model)
    assert name is not None
    found = ARCHITECTURES[name]
    settings: dict[str, Any] = {
        "model_type": name,
        "architectures": [found.class_name],
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_mlp,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "hidden_act": "silu" if model.mlp_activation == "swiglu" else model.mlp_activation,
        "max_position_embeddings": max_length,
        found.eps[0]: _EPS[found.norm],
        "tie_word_embeddings": model.tied_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        # The same for transformers 4, whose defaults of Apertus are others.
        **{"rope_theta": ROPE_BASE, "rope_scaling": None},
        **{key: value for key, (value, _) in found.others.items()},
    }
    if found.grouped:
        settings |= {"num_key_value_heads": model.kv_heads, "head_dim": model.d_model // model.n_heads}
    else:
        settings["rope_parameters"]["partial_rotary_factor"] = 1.0
        settings |= {"rotary_pct": 1.0, "rotary_emb_base": ROPE_BASE}
    return settings | ({"mlp_bias": model.bias} if len(found.biases) > 1 else {})


def read_settings(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the `model` section that equals a standard architecture.

    Args:
      content: of config.json.
      path: of the file, for messages.

    Raises:
      UserError: the architecture or one of its settings has no counterpart here; the message names the setting.
    """
    name = content.get("model_type")
    if name not in ARCHITECTURES:
        raise UserError(f"{path}: model_type is {name!r}, must be one of gpt2, {', '.join(ARCHITECTURES)}")
    found = ARCHITECTURES[name]
    sizes = {ours: positive(content, theirs, path) for ours, theirs in _SIZES.items()}
    fixed = dict(found.others) | {found.eps[0]: (_EPS[found.norm], found.eps[1])}
    fixed["head_dim"] = (sizes["d_model"] // sizes["n_heads"],) * 2
    for key, (value, default) in fixed.items():
        given = content.get(key, default)
        require_value(given == value or (key == "head_dim" and given is None), key, given, value, path)
    _check_rotation(content, found, path)
    gated = found.activations == ("swiglu",)
    activation = content.get("hidden_act", _DEFAULT_ACTIVATIONS.get(name, "silu"))
    allowed = ("silu",) if gated else found.activations
    require_value(activation in allowed, "hidden_act", activation, " or ".join(allowed), path)
    bias = content.get("mlp_bias", False) if len(found.biases) > 1 else found.biases[0]
    return {
        "base": "transformer" if found.norm == "layernorm" else "modern",
        **sizes,
        "n_kv_heads": _kv_heads(content, sizes["n_heads"], path) if found.grouped else 0,
        "mlp_activation": "swiglu" if gated else activation,
        "qk_norm": found.qk_norm,
        "bias": bool(bias),
        "tied_embeddings": bool(content.get("tie_word_embeddings", False)),
    }


_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_mlp": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
}
_DEFAULT_ACTIVATIONS = {"apertus": "xielu", "arcee": "relu2", "gpt_neox": "gelu"}


def _kv_heads(content: Mapping[str, Any], n_heads: int, path: Path) -> int:
    """Returns the value of n_kv_heads, 0 if keys have as many heads as queries."""
    if content.get("num_key_value_heads") is None:
        return 0
    heads = positive(content, "num_key_value_heads", path)
    return 0 if heads == n_heads else heads


def _check_rotation(content: Mapping[str, Any], found: Architecture, path: Path) -> None:
    """Raises UserError unless the rotary angles are those of `psann_jax.nn.positions`."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    # Names before transformers 5 stand outside. Only of Apertus, the default is not the plain rotation.
    is_apertus = content["model_type"] == "apertus"
    theta = content.get("rope_theta", content.get("rotary_emb_base", None if is_apertus else ROPE_BASE))
    theta = rope.get("rope_theta", theta)
    require_value(theta == ROPE_BASE, "rope_theta", theta, ROPE_BASE, path)
    default = "llama3" if is_apertus and not {"rope_parameters", "rope_scaling"} & content.keys() else "default"
    kind = rope.get("rope_type", rope.get("type", default))
    require_value(kind == "default", "rope_type", kind, "default", path)
    fraction = rope.get("partial_rotary_factor", content.get("rotary_pct", 1.0 if found.grouped else 0.25))
    require_value(fraction == 1, "partial_rotary_factor", fraction, 1, path)
