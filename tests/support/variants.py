"""Small models of every base, with every option that changes the network."""

import jax
import jax.numpy as jnp
import pytest

from psann_jax.config import SineConfig, SpectralConfig, WaveConfig
from psann_jax.config.families import family

SIZES = {"vocab_size": 31, "d_model": 16, "n_layers": 2, "n_heads": 4, "d_mlp": 24}

GRAVITY = {"n_positions": 48, "d_coord": 12, "d_head_coord": 16, "init": "reference"}

VARIANTS = {
    "modern": {"base": "modern"},
    "modern_swiglu_tied_softcap": {
        "base": "modern",
        "mlp_activation": "swiglu",
        "bias": True,
        "tied_embeddings": True,
        "logit_softcap": 3.0,
    },
    "transformer": {"base": "transformer"},
    "transformer_relu_alibi": {"base": "transformer", "mlp_activation": "relu", "positional_encoding": "alibi"},
    "transformer_sine_rmsnorm_alpha": {
        "base": "transformer",
        "mlp_activation": "sine",
        "norm": "rmsnorm",
        "residual_alpha": True,
    },
    "transformer_grouped_qk_norm": {"base": "transformer", "n_kv_heads": 2, "qk_norm": True},
    "transformer_one_kv_head_window_alibi": {
        "base": "transformer",
        "n_kv_heads": 1,
        "sliding_window": 5,
        "positional_encoding": "alibi",
    },
    "respsann": {"base": "respsann"},
    "respsann_alibi": {"base": "respsann", "positional_encoding": "alibi"},
    "respsann_sinusoidal": {"base": "respsann", "positional_encoding": "sinusoidal"},
    "respsann_gelu_layernorm": {"base": "respsann", "mlp_activation": "gelu", "norm": "layernorm"},
    "respsann_bounds_relu_decay": {
        "base": "respsann",
        "sine": SineConfig(decay_mode="relu", freq_bounds=(0.5, 2.0), learnable=("amplitude",)),
    },
    "respsann_no_decay": {"base": "respsann", "sine": SineConfig(decay_mode="none")},
    "respsann_scaled_gelu": {
        "base": "respsann",
        "mlp_activation": "scaled_gelu",
        "sine": SineConfig(freq_bounds=(1.5, 2.4)),
    },
    "waveresnet": {"base": "waveresnet"},
    "waveresnet_interleave": {"base": "waveresnet", "wave": WaveConfig(interleave=True)},
    "waveresnet_dilated": {"base": "waveresnet", "wave": WaveConfig(interleave=True, kernel=4, dilation_growth=2)},
    "waveresnet_interleave_window": {
        "base": "waveresnet",
        "n_kv_heads": 2,
        "qk_norm": True,
        "sliding_window": 9,
        "wave": WaveConfig(interleave=True),
    },
    "waveresnet_replace": {"base": "waveresnet", "wave": WaveConfig(replace=True, kernel=2, dilation_growth=3)},
    "waveresnet_interleave_snake_no_bias": {
        "base": "waveresnet",
        "mlp_activation": "snake",
        "bias": False,
        "wave": WaveConfig(interleave=True),
    },
    "sgrpsann": {"base": "sgrpsann", "spectral": SpectralConfig(k_fft=6)},
    "sgrpsann_fourier_full": {
        "base": "sgrpsann",
        "spectral": SpectralConfig(k_fft=5, gate_type="fourier_features", gate_groups="full", gate_strength=0.7),
    },
    "vanilla": {"base": "vanilla", "n_positions": 48},
    "ngt": {"base": "ngt", **GRAVITY},
    "ngt_value_soft": {"base": "ngt", **GRAVITY, "mass": "value", "cutoff": "soft", "rsqrt": True},
    "ngt_attractive_decay": {"base": "ngt", **GRAVITY, "variant": "attractive", "cutoff": "decay"},
    "ngt_fixed_coordinates": {"base": "ngt", **GRAVITY, "cutoff": "none", "coordinate_evolution": False},
}

# One or two of each base, which have every kind of parameter and layer; most tests take these, the slow suite all.
QUICK = {
    "modern_swiglu_tied_softcap",
    "transformer_relu_alibi",
    "transformer_one_kv_head_window_alibi",
    "respsann",
    "respsann_bounds_relu_decay",
    "waveresnet_dilated",
    "waveresnet_replace",
    "sgrpsann_fourier_full",
    "vanilla",
    "ngt_value_soft",
    "ngt_attractive_decay",
}

every_variant = pytest.mark.parametrize("name", VARIANTS)
quick_variants = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)


def variant(name, **changes):
    """Returns the `model` section of a variant."""
    options = {**SIZES, **VARIANTS[name], **changes}
    config = family(options["base"]).model(**options)
    config.check("model")
    return config


def randomised(network, seed=0):
    """Returns parameters far from their initial values, so that no term is hidden by a factor 0 or 1."""
    leaves, tree = jax.tree.flatten(network.init(jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [p + 0.2 * jax.random.normal(k, p.shape, jnp.float32) for p, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)
