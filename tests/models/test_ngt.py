"""models/ngt.py, models/vanilla.py: values and gradients of the PyTorch originals, in float64, and parameter counts."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.config import ConfigError, NGTConfig, RepulsionConfig, VanillaConfig
from psann_jax.convert.ngt_names import from_ngt
from psann_jax.models import network as registry
from psann_jax.nn.gravity import repulsion
from psann_jax.ops.cross_entropy import cross_entropy

GOLDEN = Path(__file__).parent.parent / "golden"
SIZES = {"vocab_size": 53, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_mlp": 40, "n_positions": 29}


def load(name, config):
    """The arrays of a golden file, with params and grads in our layout."""
    arrays = dict(np.load(GOLDEN / f"ngt_{name}.npz"))
    trees = {}
    for kind in ("param", "grad"):
        part = {k.removeprefix(f"{kind}/"): v for k, v in arrays.items() if k.startswith(f"{kind}/")}
        if kind == "grad":  # the radius has none under a cutoff that jumps
            for i in range(config.n_layers):
                if isinstance(config, NGTConfig):
                    part.setdefault(f"layers.{i}.attn.radius_param", np.zeros(()))
        trees[kind] = from_ngt(part, config)
    return arrays, trees["param"], trees["grad"]


def close(actual, expected, rtol=1e-9):
    actual, expected = np.asarray(actual), np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * max(np.abs(expected).max(), 1e-4))


def check(name, config, x64=None):
    """Compares everything that the golden file holds."""
    arrays, params, grads = load(name, config)
    network = registry.build(config, dtype=jnp.float64)
    tokens = jnp.asarray(arrays["tokens"])

    def loss_fn(params):
        model = network.merge(params)
        x, _, aux = model.hidden(tokens[:, :-1])
        kernel, bias = model.head_kernel()
        loss, stats = cross_entropy(x, kernel, tokens[:, 1:], jnp.ones(x.shape[:2]), bias_V=bias)
        loss = loss / stats["weight"]
        rep = jnp.zeros(())
        if aux:
            rep = jnp.mean(repulsion(aux["coordinates"], aux["mass"], None, config.repulsion, None))
        return loss + 0.05 * rep, (loss, rep, model.logits(x), aux)

    (_, (loss, rep, logits, aux)), got = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    close(logits, arrays["logits"])
    close(loss, arrays["loss"])
    if aux:
        close(rep, arrays["repulsion"])
        close(aux["coordinates"], arrays["coords"])
        close(aux["mass"], arrays["mass"][..., 0])
    assert jax.tree.structure(got) == jax.tree.structure(grads)
    jax.tree.map(close, got, grads)


@pytest.mark.parametrize(
    ("mass", "cutoff", "attention"),
    [
        *((mass, cutoff, "tiled") for mass in ("score", "value") for cutoff in ("hard", "soft", "none")),
        ("score", "hard", "plain"),
        ("value", "soft", "plain"),
    ],
)
def test_the_gravity_model_equals_the_original(mass, cutoff, attention, x64):
    config = NGTConfig(**SIZES, d_coord=12, mass=mass, cutoff=cutoff, attention=attention)
    check(f"mass{mass}_{cutoff}", config)


def test_the_vanilla_model_equals_the_original(x64):
    check("vanilla", VanillaConfig(**SIZES))


def test_parameter_counts_are_those_of_the_originals():
    assert registry.build(NGTConfig(vocab_size=8192, n_positions=512)).n_params == 25_591_432
    assert registry.build(VanillaConfig(vocab_size=8192, n_positions=512)).n_params == 25_486_336


@pytest.mark.slow
def test_reference_initial_weights_have_the_originals_loss():
    """Section 1.4 of the original: a loss of about 332 (vanilla) and 422 (NGT) instead of ln V = 9."""
    tokens = np.random.default_rng(0).integers(0, 8192, (1, 65))
    losses = {}
    for name, config in (("vanilla", VanillaConfig), ("ngt", NGTConfig)):
        for init in ("reference", "small"):
            network = registry.build(config(vocab_size=8192, n_layers=2, n_positions=64, init=init))
            model = network.merge(network.init(jax.random.key(0)))
            logits = model.logits(model.hidden(tokens[:, :-1])[0])
            losses[name, init] = -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1))
    assert 250 < losses["vanilla", "reference"] < 420
    assert 320 < losses["ngt", "reference"] < 520
    assert abs(losses["vanilla", "small"] - np.log(8192)) < 0.3
    assert abs(losses["ngt", "small"] - np.log(8192)) < 0.3


@pytest.mark.parametrize("config", [VanillaConfig, NGTConfig])
def test_with_zero_outputs_every_block_starts_as_the_identity(config):
    sizes = {"vocab_size": 64, "d_model": 32, "n_layers": 3, "n_heads": 4, "n_positions": 16}
    network = registry.build(config(**sizes, init="zero_output"))
    params, tokens = network.init(jax.random.key(0)), np.arange(16)[None]
    x = np.asarray(params["embed"])[tokens]
    if config is VanillaConfig:
        x = x + np.asarray(params["positions"])
    x = x - x.mean(-1, keepdims=True)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(network.merge(params).hidden(tokens)[0], normed, rtol=1e-4, atol=1e-5)
    assert params["blocks"]["attn"]["v"]["kernel"].any()


@pytest.mark.parametrize("init", ["small", "reference", "zero_output"])
@pytest.mark.parametrize("form", [{}, {"variant": "attractive", "cutoff": "decay"}])
def test_every_layer_starts_with_tokens_apart_and_attention_spread_over_them(init, form):
    """Tokens in one place have huge scores, which differ by chance only, and a radius that cuts no pair."""
    config = NGTConfig(vocab_size=64, d_model=64, n_layers=6, n_heads=4, d_mlp=64, n_positions=128, init=init, **form)
    network = registry.build(config)
    model = network.merge(network.init(jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, 64, (2, 128))
    seen = jax.jit(model.inspect)(tokens)
    earlier = np.tril(np.ones((128, 128), bool), -1)
    uniform = np.mean(np.log(np.arange(1, 129)))
    for d2, weights, radius in zip(seen["d2"], seen["weights"], seen["radius"], strict=True):
        pairs = np.asarray(d2)[..., earlier]
        assert 5 < np.median(pairs) < 20
        assert np.quantile(pairs, 0.001) > 1
        assert 0.01 < np.mean(pairs > radius**2) < 0.3
        entropy = -np.mean(np.sum(jax.scipy.special.xlogy(weights, weights), axis=-1))
        assert 0.8 * uniform < entropy < uniform


def test_repulsion_counts_pairs_of_one_document_only(x64):
    rng = np.random.default_rng(0)
    z, m = jnp.asarray(rng.standard_normal((1, 6, 3))), jnp.asarray(rng.uniform(0.5, 1, (1, 6)))
    segment_ids = jnp.asarray([[1, 1, 1, 2, 2, 0]])
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4)]
    want = np.mean([m[0, i] * m[0, j] / np.square(z[0, i] - z[0, j]).sum() for i, j in pairs])
    close(repulsion(z, m, segment_ids, RepulsionConfig(), None), [want])
    cubed = np.mean([m[0, i] * m[0, j] / np.linalg.norm(z[0, i] - z[0, j]) ** 3 for i, j in pairs])
    close(repulsion(z, m, segment_ids, RepulsionConfig(alpha=3.0), None), [cubed])


@pytest.mark.parametrize("alpha", [2.0, 7.0, 10.0])
def test_repulsion_has_finite_gradients_up_to_the_largest_alpha(alpha):
    z = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    z[1] = z[0]  # where it is constant
    m = jnp.full((1, 6), 0.5)
    got = jax.grad(lambda z: repulsion(z[None], m, None, RepulsionConfig(alpha=alpha), None)[0])(jnp.asarray(z))
    apart = z[:, None] - z
    distance = np.linalg.norm(apart, axis=-1, keepdims=True)
    slopes = np.where(distance == 0, 0, -alpha * apart * np.where(distance == 0, 1, distance) ** (-alpha - 2))
    np.testing.assert_allclose(got, 0.25 / 15 * slopes.sum(1), rtol=1e-4, atol=1e-4 * abs(slopes).max())


def test_repulsion_draws_the_same_places_in_every_row():
    z = jnp.asarray(np.random.default_rng(0).standard_normal((1, 40, 3)), jnp.float32)
    both = repulsion(jnp.tile(z, (2, 1, 1)), jnp.ones((2, 40)), None, RepulsionConfig(tokens=8), jax.random.key(1))
    assert both[0] == both[1]
    other = repulsion(z, jnp.ones((1, 40)), None, RepulsionConfig(tokens=8), jax.random.key(2))
    assert abs(other[0] - both[0]) > 1e-4


def test_repulsion_of_a_window_of_one_token_is_refused():
    with pytest.raises(ConfigError, match=r"^model\.repulsion\.weight: needs windows of at least two tokens"):
        repulsion(jnp.ones((1, 1, 3)), jnp.ones((1, 1)), None, RepulsionConfig(), None)


def test_extra_loss_acts_in_its_interval_only():
    config = NGTConfig(**SIZES, repulsion=RepulsionConfig(weight=2.0, interval=4))
    network = registry.build(config)
    model = network.merge(network.init(jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, 53, (2, 20))
    _, _, aux = model.hidden(tokens)
    weights = jnp.asarray([10.0, 3.0])

    def extra(step):
        return model.extra_loss(aux, None, weights, jax.random.key(0), jnp.int32(step))

    rows = repulsion(aux["coordinates"], aux["mass"], None, config.repulsion, jax.random.key(0))
    np.testing.assert_allclose(extra(8), 2.0 * (rows @ weights), rtol=1e-6)
    assert extra(0) == extra(8) > 0
    assert extra(1) == extra(7) == 0


def test_inspection_gives_what_the_layers_use():
    config = NGTConfig(**SIZES, cutoff="decay", radius_init=1.0)
    network = registry.build(config)
    model = network.merge(network.init(jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, 53, (2, 20))
    segment_ids = np.repeat([[1, 2]], 10, axis=1) * np.ones((2, 1), int)
    seen = model.inspect(tokens, segment_ids)
    _, _, aux = model.hidden(tokens, segment_ids)
    np.testing.assert_allclose(seen["coordinates"][-1], aux["coordinates"], rtol=1e-5, atol=1e-6)
    assert seen["coordinates"].shape == (3, 2, 20, 64)
    np.testing.assert_allclose(seen["weights"].sum(-1), 1, rtol=1e-5)
    assert (seen["weights"][:, :, :, 12, :10] == 0).all(), "the other document"
    np.testing.assert_allclose(seen["radius"], np.log1p(np.exp(1.0)), rtol=1e-6)


def test_statistics_are_means_over_what_is_visible():
    config = NGTConfig(**SIZES, cutoff="none", d_coord=6)
    network = registry.build(config)
    model = network.merge(network.init(jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, 53, (2, 7))
    segment_ids = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 0, 0]])
    found = model.statistics(tokens, segment_ids, None)
    seen = jax.device_get(model.inspect(tokens, segment_ids))
    rows = [
        (b, i, [j for j in range(i + 1) if segment_ids[b, j] == segment_ids[b, i]]) for b in range(2) for i in range(7)
    ]
    rows = [row for row in rows if segment_ids[row[0], row[1]] > 0]
    for layer in range(2):
        p = [seen["weights"][layer, b, h, i, js] for b, i, js in rows for h in range(4)]
        d = [np.sqrt(seen["d2"][layer, b, h, i, js]) for b, i, js in rows for h in range(4)]
        want = {
            "gamma": np.log(2),
            "radius": np.log1p(np.exp(4.0)),
            "distance": np.mean(np.concatenate(d)),
            "attended_distance": np.mean([pi @ di for pi, di in zip(p, d, strict=True)]),
            "entropy": np.mean([-np.sum(pi[pi > 0] * np.log(pi[pi > 0])) for pi in p]),
            "sparsity": np.mean(np.concatenate([pi * len(pi) < 0.01 for pi in p])),
        }
        for name, value in want.items():
            np.testing.assert_allclose(found[f"{name}/layer_{layer}"], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutoff": "none", "radius_init": 3.0}, "model.radius_init: has no effect with cutoff none"),
        ({"eps": 0.0}, "model.eps: is 0.0, must be positive"),
        ({"d_model": 30}, "model.d_model: is 30, must be divisible by model.n_heads=4"),
        ({"repulsion": RepulsionConfig(tokens=1)}, "model.repulsion.tokens: is 1, must be at least 2"),
        ({"repulsion": RepulsionConfig(weight=0.0, interval=4)}, "model.repulsion.interval: has no effect with"),
        ({"repulsion": RepulsionConfig(weight=-1.0)}, "model.repulsion.weight: is -1.0, must be at least 0"),
        ({"repulsion": RepulsionConfig(alpha=10.5)}, "model.repulsion.alpha: is 10.5, must be positive and at most 10"),
        ({"n_positions": -1}, "model.n_positions: is -1, must be at least 0"),
    ],
)
def test_mistakes_name_the_field(changes, message):
    with pytest.raises(ConfigError) as error:
        NGTConfig(**{**SIZES, **changes}).check("model")
    assert str(error.value).startswith(message)
