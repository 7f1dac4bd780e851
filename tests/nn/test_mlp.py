"""nn/mlp.py: the gated perceptron, biases and initial weights against the formulas."""

import jax
import numpy as np
import pytest
from flax import nnx

from psann_jax.config import DecoderConfig, SineConfig
from psann_jax.models.network import build
from psann_jax.nn.initial import INITIALS
from psann_jax.nn.mlp import MLP, MLPOptions
from tests.support.variants import randomised


def mlp(initial="xavier", **options):
    return MLP(MLPOptions(5, 7, sine=SineConfig(), **options), initial=INITIALS[initial], rngs=nnx.Rngs(params=0))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def arrays(layer):
    return np.asarray(layer.kernel[...], "float64"), 0 if layer.bias is None else np.asarray(layer.bias[...], "float64")


@pytest.mark.parametrize("bias", [True, False])
def test_swiglu_multiplies_by_the_silu_of_a_second_projection(bias):
    graphdef, state = nnx.split(mlp(activation="swiglu", bias=bias))
    rng = np.random.default_rng(0)
    layer = nnx.merge(graphdef, jax.tree.map(lambda p: rng.standard_normal(p.shape).astype("float32"), state))
    x = rng.standard_normal((2, 3, 5)).astype("float32")
    (w1, b1), (gate, gate_bias), (w2, b2) = (arrays(part) for part in (layer.fc1, layer.fc_gate, layer.fc2))
    z = x @ gate + gate_bias
    np.testing.assert_allclose(layer(x, None), z * sigmoid(z) * (x @ w1 + b1) @ w2 + b2, rtol=1e-4, atol=1e-5)
    assert sum(p.size for p in jax.tree.leaves(state)) == 3 * 5 * 7 + (7 + 7 + 5 if bias else 0)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [("silu", lambda z: z * sigmoid(z)), ("relu2", lambda z: np.maximum(z, 0) ** 2)],
)
def test_elementwise_activations_without_biases(activation, formula):
    layer, x = mlp(activation=activation, bias=False), np.random.default_rng(0).standard_normal((2, 3, 5))
    assert layer.fc_gate is layer.fc1.bias is layer.fc2.bias is None
    hidden = formula(x @ arrays(layer.fc1)[0])
    np.testing.assert_allclose(layer(x.astype("float32"), None), hidden @ arrays(layer.fc2)[0], rtol=1e-5, atol=1e-5)


def decoder(**options):
    return build(DecoderConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, d_mlp=12, **options))


def test_with_zero_outputs_every_block_starts_as_the_identity():
    network = decoder(base="modern")
    params, tokens = network.init(jax.random.key(0)), np.arange(10)[None]
    model = network.merge(params)
    embedded = np.asarray(params["embed"])[tokens]
    scale = 1 / np.sqrt((embedded**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(model.hidden(tokens)[0], embedded * scale, rtol=1e-5)
    for name, part in (("attn", "o"), ("mlp", "fc2")):
        assert not params["blocks"][name][part]["kernel"].any()
    assert all(params["blocks"]["attn"][part]["kernel"].any() for part in "qkv")


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("base", ["modern", "transformer"])
def test_the_base_decides_about_the_norms_of_queries_and_keys_unless_the_config_does(base, asked):
    attention = decoder(base=base, qk_norm=asked).init(jax.random.key(0))["blocks"]["attn"]
    assert ({"q_norm", "k_norm"} <= attention.keys()) is (base == "modern" if asked is None else asked)


def test_other_parameters_are_drawn_alike_for_both_kinds_of_initial_weights():
    plain, zero = (decoder(base="transformer", init=init).init(jax.random.key(3)) for init in ("xavier", "zero_output"))
    for path, array in jax.tree_util.tree_leaves_with_path(plain):
        other = zero
        for key in path:
            other = other[key.key]
        output = path[-2:][0].key in ("o", "fc2") and path[-1].key == "kernel"
        np.testing.assert_array_equal(other, 0 * array if output else array)


def test_a_tied_head_is_the_embedding_and_learns_from_both_of_its_uses():
    network = decoder(base="transformer", tied_embeddings=True)
    assert network.n_params == decoder(base="transformer").n_params - 8 * 11
    params, tokens = randomised(network), np.array([[1, 2, 3]])
    model = network.merge(params)
    x = model.hidden(tokens)[0]
    np.testing.assert_allclose(model(tokens), x @ params["embed"].T, rtol=1e-5, atol=1e-5)
    moved = np.abs(jax.grad(lambda p: network.merge(p)(tokens)[0, 0, 5])(params)["embed"]).max(axis=1)
    assert (np.flatnonzero(moved) == [1, 5]).all()


def test_the_softcap_bounds_the_logits_in_float32():
    plain, capped = (decoder(base="modern", logit_softcap=cap) for cap in (0.0, 2.5))
    params, tokens = randomised(plain), np.array([[1, 2, 3]])
    logits = 50 * plain.merge(params)(tokens)
    large = {**params, "head": 50 * params["head"]}
    np.testing.assert_allclose(capped.merge(large)(tokens), 2.5 * np.tanh(logits / 2.5), rtol=1e-4, atol=1e-5)
    narrow = build(capped.config, dtype=jax.numpy.bfloat16).merge(params)(tokens)
    assert narrow.dtype == "float32"
