"""Language models of psann_jax for `transformers`: modern, transformer, respsann, sgrpsann, waveresnet and vanilla.

`AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)` loads the folder that holds this file. It needs
torch and transformers only. The network has no dropout, and its cache is a `DynamicCache`.

Shapes: B batch, L new tokens, S all tokens, D model, H heads, K head size, F MLP.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# What the base vanilla has in place of settings.
_VANILLA: dict[str, Any] = {
    "positional_encoding": "learned",
    "norm": "layernorm",
    "bias": True,
    "attention_bias": True,
    "head_bias": True,
    "tied_embeddings": True,
}
_ELEMENTWISE = {
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda z: F.relu(z).square(),
    "silu": F.silu,
}


class PsannConfig(PretrainedConfig):
    """Sizes under the usual names, and `settings`, the `model` section of the run's config."""

    model_type = "psann_jax"

    def __init__(self, settings: dict[str, Any] | None = None, **options: Any):
        self.settings = settings or {}
        super().__init__(**options)


@dataclass
class Context:
    """What all layers share.

    Attributes:
      rope: cosines and sines of the rotary angles, each (B, L, 1, K/2), or None.
      bias: what is added to the scores of attention, (B, 1 or H, L, S), -inf where a token is not seen.
      real_BxLx1: 0 for padding among the new tokens, else 1.
      cache: keys and values of each layer, then the inputs of the filter of each layer; or None.
    """

    rope: tuple[Tensor, Tensor] | None
    bias: Tensor
    real_BxLx1: Tensor
    cache: DynamicCache | None


class RMSNorm(nn.Module):
    """x * weight / sqrt(mean(x^2) + 1e-6), computed in float32."""

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (..., D)."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * self.weight.float()).to(x.dtype)


def make_norm(name: str, features: int) -> nn.Module:
    """Creates rmsnorm or layernorm."""
    return RMSNorm(features) if name == "rmsnorm" else nn.LayerNorm(features, eps=1e-5)


class Sine(nn.Module):
    """A * exp(-d * g(z)) * sin(f * z) with A, f and d per feature, the softplus of the parameters within bounds."""

    def __init__(self, features: int, options: dict[str, Any]):
        super().__init__()
        self.options = options
        self.amplitude, self.frequency, self.decay = (nn.Parameter(torch.ones(features)) for _ in range(3))

    def forward(self, z: Tensor) -> Tensor:
        """Maps z (..., F) to the same shape."""
        x, options = z.float(), self.options
        amplitude = clamp(F.softplus(self.amplitude.float()), options["amp_bounds"])
        frequency = clamp(F.softplus(self.frequency.float()) + 1e-6, options["freq_bounds"])
        decay = clamp(F.softplus(self.decay.float()), options["damp_bounds"])
        mode = options["decay_mode"]
        g = x.abs() if mode == "abs" else F.relu(x) if mode == "relu" else torch.zeros_like(x)
        return (amplitude * torch.exp(-decay * g) * torch.sin(frequency * x)).to(z.dtype)


class Scaled(nn.Module):
    """Snake, x + sin^2(f x) / f, or GELU of f x, with f per feature."""

    def __init__(self, name: str, features: int, options: dict[str, Any]):
        super().__init__()
        self.name, self.options = name, options
        self.frequency = nn.Parameter(torch.ones(features))

    def forward(self, z: Tensor) -> Tensor:
        """Maps z (..., F) to the same shape."""
        x = z.float()
        frequency = clamp(F.softplus(self.frequency.float()) + 1e-6, self.options["freq_bounds"])
        y = x + torch.sin(frequency * x).square() / frequency if self.name == "snake" else F.gelu(frequency * x)
        return y.to(z.dtype)


def clamp(x: Tensor, bounds: list[float]) -> Tensor:
    """Limits values to (low, high), if there are bounds."""
    return x.clamp(bounds[0], bounds[1]) if bounds else x


class Activation(nn.Module):
    """An activation without parameters."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, z: Tensor) -> Tensor:
        """Maps z (..., F) to the same shape."""
        return _ELEMENTWISE[self.name](z)


def make_activation(name: str, features: int, options: dict[str, Any]) -> nn.Module:
    """Creates an activation by its name in the config; `options` are those of the sine."""
    if name == "sine":
        return Sine(features, options)
    return Scaled(name, features, options) if name in ("snake", "scaled_gelu") else Activation(name)


class MLP(nn.Module):
    """fc2(act(fc1(x))), or fc2(silu(fc_gate(x)) * fc1(x)) for swiglu."""

    def __init__(self, s: dict[str, Any]):
        super().__init__()
        d, f, name = s["d_model"], s["d_mlp"], s["mlp_activation"]
        self.fc1, self.fc2 = nn.Linear(d, f, bias=s["bias"]), nn.Linear(f, d, bias=s["bias"])
        self.fc_gate = nn.Linear(d, f, bias=s["bias"]) if name == "swiglu" else None
        self.act = make_activation("silu" if name == "swiglu" else name, f, s["sine"])

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, L, D) to the same shape."""
        h = self.fc1(x)
        return self.fc2(self.act(h) if self.fc_gate is None else self.act(self.fc_gate(x)) * h)


class Attention(nn.Module):
    """Causal attention; groups of query heads share a head of keys and values."""

    def __init__(self, s: dict[str, Any], layer: int):
        super().__init__()
        d, self.layer, bias = s["d_model"], layer, s.get("attention_bias", False)
        self.head_size = d // s["n_heads"]
        kv = self.head_size * (s.get("n_kv_heads") or s["n_heads"])
        self.q, self.k, self.v, self.o = (nn.Linear(d, size, bias=bias) for size in (d, kv, kv, d))
        has_norm = s.get("qk_norm", False)
        self.q_norm, self.k_norm = (RMSNorm(self.head_size) if has_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Maps normalised x (B, L, D) to the same shape."""
        q, k, v = (p(x).view(*x.shape[:2], -1, self.head_size) for p in (self.q, self.k, self.v))
        q, k = self.q_norm(q), self.k_norm(k)
        if context.rope is not None:
            q, k = rotate(q, context.rope), rotate(k, context.rope)
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        if context.cache is not None:
            k, v = context.cache.update(k, v, self.layer)
        k, v = (a.repeat_interleave(q.shape[1] // a.shape[1], dim=1) for a in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=context.bias.to(q.dtype))
        return self.o(out.transpose(1, 2).reshape(x.shape))


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the pairs of features (2i, 2i+1); their first members come first in the result."""
    cos, sin = tables
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def causal_filter(x: Tensor, taps_KxD: Tensor, dilation: int, layer: int, context: Context) -> Tensor:
    """y[t] = sum_k taps[k] * x[t - k * dilation], with zeros before the first token and for padding."""
    x = x * context.real_BxLx1.to(x.dtype)
    seen = x
    if context.cache is not None:
        seen = context.cache.update(x[:, None], x[:, None, :, :0], layer)[0][:, 0]
    L, past = x.shape[1], seen.shape[1] - x.shape[1]
    y = torch.zeros_like(x, dtype=torch.float32)
    for k, tap_D in enumerate(taps_KxD.float()):
        start = past - k * dilation
        if start + L <= 0:
            break
        y[:, max(0, -start) :] += tap_D * seen[:, max(0, start) : start + L]
    return y.to(x.dtype)


class Wave(nn.Module):
    """proj(act(conv(norm(x)))), the convolution depthwise, dilated and causal."""

    def __init__(self, s: dict[str, Any], layer: int):
        super().__init__()
        d = s["d_model"]
        self.dilation, self.layer = s["wave"]["dilation_growth"] ** layer, s["n_layers"] + layer
        self.norm = RMSNorm(d)
        self.conv = nn.Parameter(torch.zeros(s["wave"]["kernel"], d))
        self.act = make_activation(s["mlp_activation"], d, s["sine"])
        self.proj = nn.Linear(d, d, bias=s["bias"])

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Maps x (B, L, D) to the same shape, without the residual."""
        return self.proj(self.act(causal_filter(self.norm(x), self.conv, self.dilation, self.layer, context)))


class SpectralGate(nn.Module):
    """strength * mix(filter(u)); the filter has the taps of the spectrum sigmoid(mask)."""

    def __init__(self, s: dict[str, Any], layer: int):
        super().__init__()
        self.options, self.layer, d = s["spectral"], s["n_layers"] + layer, s["d_model"]
        self.mask = nn.Parameter(torch.zeros(d, self.options["k_fft"] // 2 + 1))
        is_full = self.options["gate_groups"] == "full"
        self.mix = nn.Parameter(torch.eye(d) if is_full else torch.ones(d))

    def forward(self, u: Tensor, context: Context) -> Tensor:
        """Maps u (B, L, D) to the same shape, without the residual."""
        y = causal_filter(u, self.taps(), 1, self.layer, context)
        return self.options["gate_strength"] * (y * self.mix if self.mix.ndim == 1 else y @ self.mix)

    def taps(self) -> Tensor:
        """Returns the filter (k_fft, D)."""
        k, gate_DxW = self.options["k_fft"], torch.sigmoid(self.mask.float())
        if self.options["gate_type"] == "rfft":
            return torch.fft.irfft(gate_DxW, n=k, dim=-1).T
        index = torch.arange(k, device=gate_DxW.device, dtype=torch.float32)
        return torch.cos(2 * math.pi * torch.outer(index, index[: k // 2 + 1]) / k) @ gate_DxW.T / k


class Block(nn.Module):
    """x + attention, then the MLP or wave branch, the spectral gate of that branch, and the interleaved wave."""

    def __init__(self, s: dict[str, Any], layer: int):
        super().__init__()
        wave = s.get("wave", {})
        replaced = wave.get("replace", False)
        self.norm1, self.norm2 = (make_norm(s["norm"], s["d_model"]) for _ in range(2))
        self.attn = Attention(s, layer)
        self.mlp: nn.Module | None = None if replaced else MLP(s)
        self.alpha = nn.Parameter(torch.ones(1)) if s.get("residual_alpha") else None
        self.gate: nn.Module | None = SpectralGate(s, layer) if s["base"] == "sgrpsann" else None
        self.wave: Any = Wave(s, layer) if replaced or wave.get("interleave") else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Maps x (B, L, D) to the same shape."""
        x = x + self.attn(self.norm1(x), context)
        h = self.norm2(x)
        u = self.wave(h, context) if self.mlp is None else self.mlp(h)
        u = u if self.alpha is None else u * self.alpha
        x = x + u
        if self.gate is not None:
            x = x + self.gate(u, context)
        if self.wave is not None and self.mlp is not None:
            x = x + self.wave(x, context)
        return x


class PsannForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, blocks, a final norm and a head, which may be the transposed embedding."""

    config_class = PsannConfig
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]

    def __init__(self, config: PsannConfig):
        super().__init__(config)
        self.s = s = {**(_VANILLA if config.settings["base"] == "vanilla" else {}), **config.settings}
        d, v = s["d_model"], s["vocab_size"]
        self.embed = nn.Embedding(v, d)
        self.positions = nn.Embedding(s["n_positions"], d) if s["positional_encoding"] == "learned" else None
        self.blocks = nn.ModuleList(Block(s, i) for i in range(s["n_layers"]))
        self.norm = make_norm(s["norm"], d)
        self.head = None if s["tied_embeddings"] else nn.Linear(d, v, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(v)) if s.get("head_bias") else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the table of token embeddings."""
        return self.embed

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes the cache, which has more entries than layers

    def forward(  # noqa: PLR0913 - the arguments of `transformers`
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        cache: DynamicCache | None = None,  # the newer name of past_key_values
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Computes logits (B, L, V), and the loss if there are labels; `options` are those of the loss.

        Padding may be on either side. Each row is one document.
        """
        if options.pop("output_attentions", None) or options.pop("output_hidden_states", None):
            raise ValueError("output_attentions and output_hidden_states are not supported")
        cache = past_key_values if cache is None else cache
        if cache is None and use_cache is not False and labels is None:
            cache = DynamicCache()
        if getattr(cache, "is_compileable", False):
            raise ValueError("cache_implementation: only the dynamic cache is supported")
        context, position_BxL = self.context(input_ids, attention_mask, position_ids, cache)
        x = self.embed(input_ids)
        if self.positions is not None:
            x = x + self.positions(position_BxL)
        elif self.s["positional_encoding"] == "sinusoidal":
            x = x + sinusoidal_encoding(position_BxL, x.shape[-1]).to(x.dtype)
        for block in self.blocks:
            x = block(x, context)
        logits = self.logits(self.norm(x)[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.s["vocab_size"], **options)
        return CausalLMOutputWithPast(loss, logits, cache)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits (B, L, V) of normalised x (B, L, D)."""
        logits = F.linear(x, self.embed.weight if self.head is None else self.head.weight, self.head_bias)
        cap = self.s.get("logit_softcap", 0.0)
        return cap * torch.tanh(logits / cap) if cap else logits

    def context(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: DynamicCache | None
    ) -> tuple[Context, Tensor]:
        """Returns what all layers share, and the positions (B, L) of the new tokens in their documents."""
        s, (B, L), device = self.s, input_ids.shape, input_ids.device
        past = 0 if cache is None else cache.get_seq_length()
        real_BxS = torch.ones(B, past + L, device=device) if attention_mask is None else attention_mask
        counted_BxL = (real_BxS.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        position_BxL = counted_BxL if position_ids is None else position_ids
        if (
            s["positional_encoding"] == "learned"
            and past + L > s["n_positions"]
            and position_BxL.max() >= s["n_positions"]
        ):
            raise ValueError(f"the model has {s['n_positions']} positions, fewer than the text has tokens")
        slot = torch.arange(past + L, device=device)
        lag_LxS = slot[past:, None] - slot
        seen_LxS = (lag_LxS >= 0) & (lag_LxS < (s.get("sliding_window") or past + L))
        # Padding sees itself, because a row of -inf gives NaN.
        seen_Bx1xLxS = (seen_LxS & (real_BxS > 0)[:, None] | (lag_LxS == 0))[:, None]
        rope, bias = None, torch.zeros(1, device=device)
        if s["positional_encoding"] == "rope":
            rope = rope_tables(position_BxL, s["d_model"] // s["n_heads"])
        elif s["positional_encoding"] == "alibi":
            bias = -alibi_slopes(s["n_heads"], device)[:, None, None] * lag_LxS
        bias = bias.masked_fill(~seen_Bx1xLxS, -math.inf)
        return Context(rope, bias, real_BxS[:, past:, None], cache), position_BxL


def rope_tables(position_BxL: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines of the rotary angles, each (B, L, 1, K/2)."""
    index = torch.arange(head_size // 2, device=position_BxL.device, dtype=torch.float32)
    angle = position_BxL.float()[..., None, None] * 10000.0 ** (-index / (head_size // 2))
    return torch.cos(angle), torch.sin(angle)


def alibi_slopes(n_heads: int, device: Any) -> Tensor:
    """Returns the slopes of ALiBi, (H,)."""
    below = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    slopes += [2 ** (-4 * (2 * i + 1) / below) for i in range(n_heads - below)]
    return torch.tensor(slopes, device=device)


def sinusoidal_encoding(position_BxL: Tensor, features: int) -> Tensor:
    """Returns sines in the even features and cosines in the odd ones, (B, L, D)."""
    index = torch.arange(features // 2, device=position_BxL.device, dtype=torch.float32)
    angle = position_BxL.float()[..., None] * 10000.0 ** (-2.0 * index / features)
    return torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(-2)
