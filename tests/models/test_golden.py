"""Logits, losses and gradients of the PyTorch originals of the decoder's bases, in float64."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.config import DecoderConfig, SineConfig, SpectralConfig
from psann_jax.convert.psannlm_names import from_psannlm
from psann_jax.models import network as registry
from psann_jax.nn.sine import Sine
from psann_jax.ops.cross_entropy import cross_entropy

GOLDEN = Path(__file__).parent.parent / "golden"
RTOL = 1e-6  # the originals form their rotary tables in float32

SIZES = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "d_mlp": 48}
MODELS = {
    "transformer": {"base": "transformer"},
    "transformer_relu": {"base": "transformer", "mlp_activation": "relu", "positional_encoding": "sinusoidal"},
    "respsann_rope": {"base": "respsann"},
    "respsann_alibi": {"base": "respsann", "positional_encoding": "alibi"},
    "respsann_sinusoidal": {"base": "respsann", "positional_encoding": "sinusoidal"},
    "respsann_gelu": {"base": "respsann", "mlp_activation": "gelu"},
    "waveresnet": {"base": "waveresnet"},
}
SPECTRAL = {
    "k16_rfft": SpectralConfig(k_fft=16),
    "k15_rfft": SpectralConfig(k_fft=15),
    "k16_fourier": SpectralConfig(k_fft=16, gate_type="fourier_features"),
}


def load(name, config):
    """The arrays of a golden file, with params and grads in our layout."""
    arrays = dict(np.load(GOLDEN / f"lm_{name}.npz"))
    trees = {}
    for kind in ("param", "grad"):
        part = {k.removeprefix(f"{kind}/"): v for k, v in arrays.items() if k.startswith(f"{kind}/")}
        trees[kind] = from_psannlm(part, config) if part else None
    return arrays, trees["param"], trees["grad"]


def close(actual, expected, rtol=RTOL):
    actual, expected = np.asarray(actual), np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("scan_layers", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_every_gradient_equal_the_original(name, scan_layers, x64):
    config = DecoderConfig(n_layers=3, **SIZES, **MODELS[name])
    arrays, params, grads = load(name, config)
    network = registry.build(config, dtype=jnp.float64, scan_layers=scan_layers)
    assert network.n_params == arrays["n_params"]
    tokens = jnp.asarray(arrays["tokens"])

    def loss_fn(params):
        model = network.merge(params)
        x, _, _ = model.hidden(tokens[:, :-1])
        kernel, bias = model.head_kernel()
        loss, stats = cross_entropy(x, kernel, tokens[:, 1:], jnp.ones(x.shape[:2]), bias_V=bias)
        return loss / stats["weight"], model.logits(x)

    (loss, logits), got = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    close(logits, arrays["logits"])
    close(loss, arrays["loss"])
    assert jax.tree.structure(got) == jax.tree.structure(grads)
    jax.tree.map(close, got, grads)


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_filter_equals_the_original_on_every_prefix(name, x64):
    config = DecoderConfig(base="sgrpsann", n_layers=1, spectral=SPECTRAL[name], **SIZES)
    arrays, params, _ = load(f"sgrpsann_{name}", config)
    model = registry.build(config, dtype=jnp.float64).merge(params)
    x, _, _ = model.hidden(jnp.asarray(arrays["tokens"]))
    close(model.logits(x), arrays["prefix_last_logits"])


@pytest.mark.parametrize("mode", ["abs", "relu", "none"])
def test_sine_layer_equals_the_original(mode, x64):
    arrays = np.load(GOLDEN / f"sine_{mode}.npz")
    from flax import nnx

    module = Sine(7, SineConfig(decay_mode=mode), None, rngs=nnx.Rngs(0))
    graphdef, _ = nnx.split(module)
    names = {"amplitude": "_A", "frequency": "_f", "decay": "_d"}
    raw = {name: jnp.asarray(arrays[f"param/{theirs}"]) for name, theirs in names.items()}
    y, vjp = jax.vjp(lambda raw, z: nnx.merge(graphdef, raw)(z), raw, jnp.asarray(arrays["z"]))
    close(y, arrays["y"], 1e-10)
    grad_raw, grad_z = vjp(jnp.asarray(arrays["cotangent"]))
    close(grad_z, arrays["grad_z"], 1e-10)
    for name, theirs in names.items():
        close(grad_raw[name], arrays[f"grad/{theirs}"], 1e-10)
