"""The Newton Gravity Transformer of psann_jax for `transformers`.

`AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)` loads the folder that holds this file. It needs
torch and transformers only. The network has no dropout and no repulsion loss, and its cache is a `DynamicCache`.

Shapes: B batch, L new tokens, S all tokens, D model, H heads, C coordinates per head.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# The score of a token with itself if near tokens attract: below all others, but above those of unseen tokens.
_SELF, _UNSEEN = -1e20, -1e30


class NGTConfig(PretrainedConfig):
    """Sizes under the usual names, and `settings`, the `model` section of the run's config."""

    model_type = "psann_jax_ngt"

    def __init__(self, settings: dict[str, Any] | None = None, **options: Any):
        self.settings = settings or {}
        super().__init__(**options)


@dataclass
class Context:
    """What all layers share.

    Attributes:
      seen_Bx1xLxS: whether a new token sees a token.
      same_LxS: whether both are the same token.
      mass_BxL: masses of the new tokens.
      mass_BxS: masses of all tokens.
      cache: coordinates and values of each layer, then the masses; or None.
    """

    seen_Bx1xLxS: Tensor
    same_LxS: Tensor
    mass_BxL: Tensor
    mass_BxS: Tensor
    cache: DynamicCache | None


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


def clamp(x: Tensor, bounds: list[float]) -> Tensor:
    """Limits values to (low, high), if there are bounds."""
    return x.clamp(bounds[0], bounds[1]) if bounds else x


class MLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, s: dict[str, Any]):
        super().__init__()
        d, f, name = s["d_model"], s["d_mlp"], s["mlp_activation"]
        self.fc1, self.fc2 = nn.Linear(d, f), nn.Linear(f, d)
        elementwise = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "relu": nn.ReLU()}
        self.act = Sine(f, s["sine"]) if name == "sine" else elementwise[name]

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, L, D) to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class GravityAttention(nn.Module):
    """Mean of the values of the earlier tokens, weighted by their distance and mass; scores are in float32."""

    def __init__(self, s: dict[str, Any], layer: int):
        super().__init__()
        d, h = s["d_model"], s["n_heads"]
        self.s, self.layer = s, layer
        self.attractive = s["variant"] == "attractive"
        self.eps = s["eps"] or (0.1 if self.attractive else 1e-6)
        self.v, self.o = nn.Linear(d, d), nn.Linear(d, d)
        self.coords = nn.Linear(s["d_coord"], h * s["d_head_coord"])
        self.gamma, self.bias = nn.Parameter(torch.zeros(h)), nn.Parameter(torch.zeros(h))
        self.radius = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, z: Tensor, context: Context) -> Tensor:
        """Maps normalised x (B, L, D) with coordinates z (B, L, d_coord) to (B, L, D)."""
        B, L, D = x.shape
        v = self.v(x).view(B, L, self.s["n_heads"], -1)
        if self.s["mass"] == "value":
            v = v * context.mass_BxL[..., None, None].to(v.dtype)
        a, v = self.coords(z).view(B, L, self.s["n_heads"], -1).transpose(1, 2).float(), v.transpose(1, 2)
        every_a, every_v = (a, v) if context.cache is None else context.cache.update(a, v, self.layer)
        weights = torch.softmax(self.scores(a, every_a, context), dim=-1)
        out = (weights @ every_v.float()).to(x.dtype)
        return self.o(out.transpose(1, 2).reshape(B, L, D))

    def scores(self, a: Tensor, every_a: Tensor, context: Context) -> Tensor:
        """Returns the scores (B, H, L, S) of coordinates a (B, H, L, C) with every_a (B, H, S, C)."""
        d2 = a.square().sum(-1)[..., None] + every_a.square().sum(-1)[:, :, None] - 2 * a @ every_a.transpose(2, 3)
        d2 = d2.clamp(min=0).masked_fill(context.same_LxS, 0)
        gamma, bias = (p.float()[:, None, None] for p in (F.softplus(self.gamma), self.bias))
        s = (gamma if self.attractive else -gamma) / (d2 + self.eps) + bias
        if self.s["mass"] == "score":
            s = s * (context.mass_BxL[:, :, None] * context.mass_BxS[:, None])[:, None]
        radius2, cutoff = F.softplus(self.radius.float()).square(), self.s["cutoff"]
        if cutoff == "hard":
            s = s.masked_fill(d2 > radius2, _UNSEEN)
        elif cutoff == "soft":
            s = s * F.relu(1 - d2 / radius2)
        elif cutoff == "decay":
            inside = d2 < radius2
            s = torch.where(inside, s + torch.log(torch.where(inside, 1 - d2 / radius2, 1)), _UNSEEN)
        s = s.masked_fill(context.same_LxS, _SELF) if self.attractive else s
        return s.masked_fill(~context.seen_Bx1xLxS, _UNSEEN)


class Block(nn.Module):
    """o = attention(norm1(x), z); x = x + o; x = x + mlp(norm2(x)); z = coord_norm(z + next(o))."""

    def __init__(self, s: dict[str, Any], layer: int):
        super().__init__()
        d, c, evolves = s["d_model"], s["d_coord"], s["coordinate_evolution"]
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-5), nn.LayerNorm(d, eps=1e-5)
        self.attn, self.mlp = GravityAttention(s, layer), MLP(s)
        self.next = nn.Linear(d, c) if evolves else None
        self.coord_norm = nn.LayerNorm(c, eps=1e-5) if evolves else nn.Identity()

    def forward(self, x: Tensor, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Returns the new stream x (B, L, D) and coordinates z (B, L, d_coord)."""
        o = self.attn(self.norm1(x), z, context)
        x = x + o
        x = x + self.mlp(self.norm2(x))
        return x, z if self.next is None else self.coord_norm(z + self.next(o))


class NGTForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, gravity blocks, a final norm and a tied head with a bias."""

    config_class = NGTConfig
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]

    def __init__(self, config: NGTConfig):
        super().__init__(config)
        self.s = s = config.settings
        self.embed = nn.Embedding(s["vocab_size"], s["d_model"])
        self.mass = nn.Embedding(s["vocab_size"], 1)
        self.coords = nn.Embedding(s["n_positions"], s["d_coord"])
        self.blocks = nn.ModuleList(Block(s, i) for i in range(s["n_layers"]))
        self.norm = nn.LayerNorm(s["d_model"], eps=1e-5)
        self.head_bias = nn.Parameter(torch.zeros(s["vocab_size"]))
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
        x, z = self.embed(input_ids), self.coords(position_BxL)
        for block in self.blocks:
            x, z = block(x, z, context)
        logits = F.linear(self.norm(x)[:, -logits_to_keep:], self.embed.weight, self.head_bias)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.s["vocab_size"], **options)
        return CausalLMOutputWithPast(loss, logits, cache)

    def context(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: DynamicCache | None
    ) -> tuple[Context, Tensor]:
        """Returns what all layers share, and the positions (B, L) of the new tokens in their documents."""
        (B, L), device = input_ids.shape, input_ids.device
        past = 0 if cache is None else cache.get_seq_length()
        real_BxS = torch.ones(B, past + L, device=device) if attention_mask is None else attention_mask
        counted_BxL = (real_BxS.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        position_BxL = counted_BxL if position_ids is None else position_ids
        if past + L > self.s["n_positions"] and position_BxL.max() >= self.s["n_positions"]:
            raise ValueError(f"the model has {self.s['n_positions']} positions, fewer than the text has tokens")
        slot = torch.arange(past + L, device=device)
        same_LxS = slot[past:, None] == slot
        seen_BxLxS = (slot[past:, None] >= slot) & (real_BxS > 0)[:, None] | same_LxS
        mass_BxL = every_BxS = F.softplus(self.mass(input_ids).float())[..., 0]
        if cache is not None:
            keys = mass_BxL[:, None, :, None]
            every_BxS = cache.update(keys, keys[..., :0], len(self.blocks))[0][:, 0, :, 0]
        return Context(seen_BxLxS[:, None], same_LxS, mass_BxL, every_BxS, cache), position_BxL
