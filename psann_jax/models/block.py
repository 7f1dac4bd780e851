"""One pre-norm block of the decoder."""

import jax
from flax import nnx

from psann_jax.config import DecoderConfig
from psann_jax.nn.attention import Attention, AttentionOptions
from psann_jax.nn.context import Context, LayerCache
from psann_jax.nn.initial import INITIALS
from psann_jax.nn.mlp import MLP, MLPOptions
from psann_jax.nn.norm import NORMS
from psann_jax.nn.partition import constant, param
from psann_jax.nn.spectral import SpectralGate
from psann_jax.nn.wave import Wave
from psann_jax.ops.mixed_precision import scale


class Block(nnx.Module):
    """Attention, then the MLP branch, then the additions of the base.

    x = x + attention(norm1(x))
    u = alpha * mlp(norm2(x)),  or alpha * wave(norm2(x)) with wave.replace
    x = x + u,                  or x + u + gate(u) for sgrpsann
    x = x + wave(x)             with wave.interleave
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        """Creates the layers; every None in the config must be resolved."""
        norm, activation = NORMS[config.norm or "rmsnorm"], config.mlp_activation or "sine"
        d, initial = config.d_model, INITIALS[config.init or "xavier"]
        self.norm1 = norm(d, rngs=rngs)
        attention = AttentionOptions(
            d,
            config.n_heads,
            n_kv_heads=config.n_kv_heads,
            qk_norm=bool(config.qk_norm),
            window=config.sliding_window,
            dropout=config.dropout,
            output_dropout=config.dropout,
            implementation=config.attention,
        )
        mlp = MLPOptions(
            d, config.d_mlp, activation, config.sine, dropout=config.dropout, bias=config.bias is not False
        )
        self.attn = Attention(attention, initial=initial, rngs=rngs)
        self.norm2 = norm(d, rngs=rngs)
        self.mlp = None if config.wave.replace else MLP(mlp, initial=initial, rngs=rngs)
        self.alpha = param(rngs, constant(1.0), (1,), "alpha", (None,)) if config.residual_alpha else None
        self.gate = SpectralGate(d, config.spectral, rngs=rngs) if config.base == "sgrpsann" else None
        has_wave = config.wave.interleave or config.wave.replace
        self.wave = Wave(mlp, config.wave, initial=initial, rngs=rngs) if has_wave else None

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        cache: LayerCache | None,
        key: jax.Array | None,
        *,
        dilation: int | jax.Array,
        max_shift: int,
    ) -> tuple[jax.Array, LayerCache]:
        """Applies the block to x (B, L, D).

        Args:
          x: the residual stream.
          context: shared arrays.
          cache: this layer's entries, or None.
          key: for dropout, or None.
          dilation: of the wave convolution; may be traced.
          max_shift: static upper bound of the reach of the convolution.

        Returns:
          (B, L, D) and the layer's new cache.
        """
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        split = context.split
        attended, updated = self.attn(context.whole(self.norm1(x)), context, cache, keys[0])
        x = x + split(attended)
        h = self.norm2(x)
        if self.mlp is not None:
            u = self.mlp(context.whole(h), keys[1])
        else:
            assert self.wave is not None
            u, more = self.wave(h, context, cache, keys[2], dilation=dilation, max_shift=max_shift)
            updated |= more
        if self.alpha is not None:
            u = scale(u, self.alpha[...])
        u = split(u)
        x = x + u
        if self.gate is not None:
            gated, more = self.gate(u, context, cache)
            x, updated = x + split(gated), updated | more
        if self.wave is not None and self.mlp is not None:
            waved, more = self.wave(x, context, cache, keys[2], dilation=dilation, max_shift=max_shift)
            x, updated = x + split(waved), updated | more
        return x, updated
