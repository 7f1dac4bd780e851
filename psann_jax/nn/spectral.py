"""The spectral gate of SGR-PSANN as a causal filter."""

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import SpectralConfig
from psann_jax.nn.causal_filter import causal_filter
from psann_jax.nn.context import Context, LayerCache
from psann_jax.nn.partition import constant, param
from psann_jax.ops.causal_filter import next_history
from psann_jax.ops.mixed_precision import scale


def _identity(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.eye(shape[0], dtype=jnp.float32)


class SpectralGate(nnx.Module):
    """strength * mix(g * u), where g is the filter whose spectrum is the learned gate sigmoid(mask).

    The original multiplies the spectrum of the last `k_fft` positions, which is a circular convolution and mixes later
    positions into earlier ones. The causal filter with the taps of the same spectrum computes at each position what
    the original computes for a sequence that ends there.
    """

    def __init__(self, features: int, config: SpectralConfig, *, rngs: nnx.Rngs):
        self.config = config
        shape = (features, config.k_fft // 2 + 1)
        self.mask = param(rngs, constant(config.gate_init), shape, "gate", (None, None))
        if config.gate_groups == "depthwise":
            self.mix = param(rngs, constant(1.0), (features,), "gate", (None,))
        else:
            self.mix = param(rngs, _identity, (features, features), "mixing", ("embed", None))

    def taps(self) -> jax.Array:
        """The filter, (k_fft, D)."""
        k = self.config.k_fft
        gate_DxW = jax.nn.sigmoid(self.mask[...])
        if self.config.gate_type == "rfft":
            return jnp.fft.irfft(gate_DxW, n=k, axis=-1).T
        # Cosine features count each frequency once; a real transform counts the inner ones twice.
        phase_KxW = 2 * jnp.pi * jnp.outer(jnp.arange(k), jnp.arange(k // 2 + 1)) / k
        return jnp.cos(phase_KxW).astype(gate_DxW.dtype) @ gate_DxW.T / k

    def __call__(self, u_BxLxD: jax.Array, context: Context, cache: LayerCache | None) -> tuple[jax.Array, LayerCache]:
        """Filters u (B, L, D) within each document. The cache is {"spectral"}: the last k_fft - 1 inputs."""
        u_BxLxD = context.channels(u_BxLxD)
        history = None if cache is None else cache["spectral"].astype(u_BxLxD.dtype)
        y = causal_filter(
            u_BxLxD, self.taps(), context.reach_BxL, max_shift=self.config.k_fft - 1, history_BxWxD=history
        )
        y = context.channels(y)  # otherwise XLA would shard the sums of the filter by position, like the next operation
        mix = self.mix[...]
        y = self.config.gate_strength * (scale(y, mix) if mix.ndim == 1 else y @ mix.astype(y.dtype))
        if cache is None or history is None or context.valid_B is None:
            return y, {}
        return y, {"spectral": next_history(history, u_BxLxD, context.valid_B).astype(cache["spectral"].dtype)}
