"""Optimizers against their papers, and clipping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from psann_jax.config import SpectralConfig, TrainConfig
from psann_jax.models.network import build
from psann_jax.nn.partition import ParamInfo
from psann_jax.train.adafactor import scale_by_factored_rms
from psann_jax.train.optimizers import clip_by_global_norm, make_optimizer, optimizer_shardings
from tests.support.variants import variant

OPTIMIZERS = ["adamw", "adafactor", "muon"]

INFOS = {
    "blocks": {
        "kernel": ParamInfo("matrix", ("layers", "embed", "mlp")),
        "bias": ParamInfo("bias", ("layers", "mlp")),
        "norm": ParamInfo("norm", ("layers", "embed")),
        "sine": ParamInfo("sine", ("layers", "mlp")),
        "frozen": ParamInfo("sine", ("layers", "mlp"), trainable=False),
        "alpha": ParamInfo("alpha", ("layers",)),
        "conv": ParamInfo("conv", ("layers", None, "embed")),
        "gate": ParamInfo("gate", ("layers", "embed")),
        "mix": ParamInfo("mixing", ("layers", "embed", None)),
    },
    "embed": ParamInfo("embedding", ("vocab", "embed")),
    "head": ParamInfo("matrix", ("embed", "vocab")),
}
SHAPES = {
    "blocks": {
        "kernel": (3, 8, 12),
        "bias": (3, 12),
        "norm": (3, 8),
        "sine": (3, 12),
        "frozen": (3, 12),
        "alpha": (3,),
        "conv": (3, 3, 8),
        "gate": (3, 8),
        "mix": (3, 8, 8),
    },
    "embed": (20, 8),
    "head": (8, 20),
}
UNDECAYED = {"norm", "bias", "sine", "alpha", "gate", "mixing"}


def random_tree(seed: int, shapes=SHAPES, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(scale * rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


def run(config, infos, params, grads_of_steps, rates):
    """Returns the parameters after updates with a transformation that is rebuilt for each rate, as in training."""

    @jax.jit
    def step(params, state, grads, rate):
        updates, state = make_optimizer(config, infos, rate).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(make_optimizer(config, infos, 0.0).init)(params)
    for grads, rate in zip(grads_of_steps, rates, strict=True):
        params, state = step(params, state, grads, float(rate))
    return params


def numpy_adamw(config, infos, params, grads_of_steps, rates):
    """Loshchilov and Hutter (2019), algorithm 2, in float64."""
    b1, b2 = config.betas

    def one(info, p, *grads):
        p = np.asarray(p, np.float64)
        m = v = 0.0
        for t, (g, rate) in enumerate(zip(grads, rates, strict=True), 1):
            if not info.trainable:
                continue
            g = np.asarray(g, np.float64)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + config.eps)
            decay = 0.0 if config.weight_decay_on == "matrices" and info.kind in UNDECAYED else config.weight_decay
            p = p - rate * (step + decay * p)
        return p

    return jax.tree.map(one, infos, params, *grads_of_steps)


def assert_trees_close(actual, expected, rtol=2e-6, atol=2e-6):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol), actual, expected)


@pytest.mark.parametrize("decay_on", ["matrices", "all"])
def test_adamw_is_adamw(decay_on):
    config = TrainConfig(betas=(0.9, 0.95), eps=1e-6, weight_decay=0.3, weight_decay_on=decay_on)
    params, grads, rates = random_tree(0), [random_tree(i) for i in range(1, 6)], [0.1, 0.3, 0.2, 0.05, 0.01]
    assert_trees_close(run(config, INFOS, params, grads, rates), numpy_adamw(config, INFOS, params, grads, rates))


def test_weight_decay_skips_kinds_whose_neutral_value_is_not_zero():
    """With zero gradients, only weight decay acts."""
    config = TrainConfig(weight_decay=0.5)
    params = random_tree(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for optimizer in OPTIMIZERS:
        after = run(dataclasses.replace(config, optimizer=optimizer), INFOS, params, [zeros], [0.1])
        expected = jax.tree.map(lambda i, p: p if i.kind in UNDECAYED else p * (1 - 0.1 * 0.5), INFOS, params)
        assert_trees_close(after, expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_parameters_stay_bit_equal(optimizer):
    config = TrainConfig(optimizer=optimizer, weight_decay=0.5, weight_decay_on="all")
    params = random_tree(0)
    after = run(config, INFOS, params, [random_tree(i) for i in range(1, 4)], [0.1] * 3)
    np.testing.assert_array_equal(after["blocks"]["frozen"], params["blocks"]["frozen"])
    unchanged = jax.tree.map(lambda a, p: bool((a == p).any()), after, params)
    unchanged["blocks"]["frozen"] = False
    assert not any(jax.tree.leaves(unchanged))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_compilation_and_one_state_structure_for_all_rates(optimizer):
    config = TrainConfig(optimizer=optimizer)
    params = random_tree(0)

    @jax.jit
    def step(params, state, rate):
        updates, state = make_optimizer(config, INFOS, rate).update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = make_optimizer(config, INFOS, 0.0).init(params)
    structure = jax.tree.structure(state)
    for rate in (0.1, 0.2, 0.3):
        params, state = step(params, state, jnp.float32(rate))
        assert jax.tree.structure(state) == structure
    assert step._cache_size() == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_is_sharded_like_the_parameters(optimizer):
    params = random_tree(0, {**SHAPES, "head": (128, 256)})  # large enough for Adafactor to factor
    names = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), params)
    tx = make_optimizer(TrainConfig(optimizer=optimizer), INFOS, 0.0)
    state = tx.init(params)
    shardings = optimizer_shardings(tx, params, names, "replicated")
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    shapes = jax.tree.map(jnp.shape, params, is_leaf=lambda x: isinstance(x, jax.Array))
    moments = 0
    for (path, sharding), value in zip(
        jax.tree_util.tree_leaves_with_path(shardings), jax.tree.leaves(state), strict=True
    ):
        if sharding != "replicated":
            moments += 1
            shape = shapes
            for key in path[-2:] if "blocks" in sharding else path[-1:]:
                shape = shape[key.key]
            assert jax.tree_util.keystr(path).endswith(sharding)
            assert value.shape == shape
    # Two moments for all but the frozen parameter; Muon has one for each matrix; factored moments are not counted.
    assert moments == {"adamw": 20, "muon": 17, "adafactor": 9}[optimizer]


def test_muon_orthogonalises_every_layer_separately():
    config = TrainConfig(optimizer="muon", weight_decay=0.0)
    for shape in ((3, 8, 12), (3, 12, 8)):
        stacked = {"w": ParamInfo("matrix", ("layers", "embed", "mlp"))}
        single = {str(i): ParamInfo("matrix", ("embed", "mlp")) for i in range(3)}
        params = random_tree(0, {"w": shape})["w"]
        grads = [random_tree(i, {"w": shape})["w"] * jnp.array([1.0, 10.0, 100.0])[:, None, None] for i in (1, 2)]
        together = run(config, stacked, {"w": params}, [{"w": g} for g in grads], [0.1, 0.1])["w"]

        def split(x):
            return {str(i): x[i] for i in range(3)}

        apart = run(config, single, split(params), [split(g) for g in grads], [0.1, 0.1])
        for i in range(3):
            np.testing.assert_allclose(together[i], apart[str(i)], rtol=1e-4, atol=1e-6)


def test_muon_updates_are_nearly_orthogonal_with_the_rms_of_adamw():
    params = {"w": jnp.zeros((2, 64, 32))}
    infos = {"w": ParamInfo("matrix", ("layers", "embed", "mlp"))}
    grads = random_tree(0, {"w": (2, 64, 32)})
    update = -run(TrainConfig(optimizer="muon"), infos, params, [grads], [1.0])["w"]
    for layer, gradient in zip(update, grads["w"], strict=True):
        singular = np.linalg.svd(layer / (0.2 * np.sqrt(64)), compute_uv=False)
        assert 0.6 < singular.min() < singular.max() < 1.3  # of the gradient: 2.6 to 13
        u, _, vt = np.linalg.svd(gradient, full_matrices=False)
        assert np.sum(np.asarray(layer) * (u @ vt)) / np.linalg.norm(layer) / np.sqrt(32) > 0.95
        assert 0.15 < np.sqrt(np.mean(np.square(layer))) < 0.25


def test_muon_uses_adamw_for_all_but_matrices():
    muon = TrainConfig(optimizer="muon", betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2)
    params, grads, rates = random_tree(0), [random_tree(i) for i in (1, 2, 3)], [0.1, 0.2, 0.3]
    after = run(muon, INFOS, params, grads, rates)
    adamw = numpy_adamw(muon, INFOS, params, grads, rates)
    matrices = jax.tree.map(lambda i: i.kind in ("matrix", "mixing"), INFOS)
    for is_matrix, a, e in zip(*map(jax.tree.leaves, (matrices, after, adamw)), strict=True):
        assert np.allclose(a, e, rtol=2e-6, atol=2e-6) != is_matrix


def test_adafactor_equals_the_paper_for_a_factored_matrix():
    """Shazeer and Stern (2018), algorithm 4, with the decay 1 - t^-0.8 and without the relative step size."""
    config = TrainConfig(optimizer="adafactor", weight_decay=0.1)
    infos = {"w": ParamInfo("matrix", ("embed", "mlp"))}
    params = random_tree(0, {"w": (128, 160)})
    grads = [random_tree(i, {"w": (128, 160)}, scale=0.1 * i) for i in (1, 2, 3)]
    p, row, column = np.asarray(params["w"], np.float64), 0.0, 0.0
    for t, g in enumerate(grads, 1):
        g = np.asarray(g["w"], np.float64)
        decay = 1 - t**-0.8
        square = g * g + 1e-30
        row = decay * row + (1 - decay) * square.mean(1, keepdims=True)
        column = decay * column + (1 - decay) * square.mean(0, keepdims=True)
        u = g / np.sqrt(row * column / row.mean())
        u = u / max(1.0, np.sqrt(np.mean(u * u)))
        p = p - 0.01 * (u + 0.1 * p)
    np.testing.assert_allclose(run(config, infos, params, grads, [0.01] * 3)["w"], p, rtol=1e-5, atol=1e-6)


def test_adafactor_clips_every_layer_separately():
    config = TrainConfig(optimizer="adafactor", weight_decay=0.0)
    params = random_tree(0, {"w": (3, 8, 12)})["w"]
    grads = [random_tree(i, {"w": (3, 8, 12)})["w"] for i in (1, 2)]
    grads[1] = grads[1].at[1].mul(1000.0)  # a spike in one layer
    together = run(
        config, {"w": ParamInfo("matrix", ("layers", "embed", "mlp"))}, {"w": params}, [{"w": g} for g in grads], [1, 1]
    )["w"]
    for i in range(3):
        alone = run(
            config, {"w": ParamInfo("matrix", ("embed", "mlp"))}, {"w": params[i]}, [{"w": g[i]} for g in grads], [1, 1]
        )["w"]
        np.testing.assert_allclose(together[i], alone, rtol=1e-5)


@pytest.mark.parametrize("shape", [(130, 3), (130, 128, 160), (130, 160, 128), (2, 200, 130, 3), (5, 131)])
def test_adafactor_factors_every_layer_separately_however_many_there_are(shape):
    config = TrainConfig(optimizer="adafactor", weight_decay=0.0)
    scales = jnp.asarray(np.random.default_rng(5).uniform(0.1, 10, shape[0]), jnp.float32)
    scales = scales.reshape(-1, *[1] * (len(shape) - 1))
    params = random_tree(0, {"w": shape})["w"]
    grads = [scales * random_tree(i, {"w": shape})["w"] for i in (1, 2)]
    axes = ("embed", "mlp", None)[: len(shape) - 1]
    together = run(
        config, {"w": ParamInfo("matrix", ("layers", *axes))}, {"w": params}, [{"w": g} for g in grads], [1, 1]
    )
    for i in {0, 1, shape[0] - 1}:
        alone = run(config, {"w": ParamInfo("matrix", axes)}, {"w": params[i]}, [{"w": g[i]} for g in grads], [1, 1])
        np.testing.assert_allclose(together["w"][i], alone["w"], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(20,), (127, 200), (128, 129), (200, 128), (3, 128, 160), (3, 160, 128), (2, 3, 5)])
def test_adafactor_has_the_state_and_values_of_optax_for_few_layers(shape):
    """So that checkpoints of both resume."""
    infos = {
        "w": ParamInfo("matrix", ("layers", *[None] * (len(shape) - 1)) if len(shape) > 2 else (None,) * len(shape))
    }
    ours = scale_by_factored_rms({"w": infos["w"].axes[0] == "layers"})
    theirs = optax.scale_by_factored_rms()
    params = random_tree(0, {"w": shape})
    states = [ours.init(params), theirs.init(params)]
    for i in (1, 2, 3):
        grads = random_tree(i, {"w": shape})
        pairs = [jax.jit(t.update)(grads, s, params) for t, s in zip((ours, theirs), states, strict=True)]
        assert jax.tree.map(jnp.shape, pairs[0]) == jax.tree.map(jnp.shape, pairs[1])
        assert_trees_close(*pairs, rtol=1e-5)
        states = [state for _, state in pairs]


@pytest.mark.parametrize("groups", ["depthwise", "full"])
def test_weight_decay_leaves_a_spectral_gate_alone(groups):
    """Its raw mask would decay towards a gate of 1/2, and its mixing, which starts as the identity, towards 0."""
    network = build(variant("sgrpsann", spectral=SpectralConfig(k_fft=6, gate_groups=groups, gate_init=-4.0)))
    params = network.init(jax.random.key(0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    after = run(TrainConfig(weight_decay=0.5), network.infos, params, [zeros], [0.1])
    jax.tree.map(np.testing.assert_array_equal, after["blocks"]["gate"], params["blocks"]["gate"])
    assert_trees_close(after["head"], 0.95 * params["head"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_minimises_a_quadratic(optimizer):
    config = TrainConfig(optimizer=optimizer, weight_decay=0.0)
    target = random_tree(7)
    infos = jax.tree.map(lambda i: dataclasses.replace(i, trainable=True), INFOS)

    def loss(params):
        return sum(jnp.sum(jnp.square(p - t)) for p, t in zip(*map(jax.tree.leaves, (params, target)), strict=True))

    @jax.jit
    def step(params, state, rate):
        updates, state = make_optimizer(config, infos, rate).update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = random_tree(0)
    first = loss(params)
    state = make_optimizer(config, infos, 0.0).init(params)
    for i in range(300):
        params, state = step(params, state, 0.1 * (1 - i / 300))
    assert loss(params) < 1e-2 * first


# --- clipping -------------------------------------------------------------------------------------------


def test_clipping_scales_all_gradients_by_one_factor():
    grads = {"a": jnp.array([3.0, 0.0]), "b": {"c": jnp.array([[4.0]])}}
    clipped, norm = clip_by_global_norm(grads, 2.0)
    assert norm == 5
    np.testing.assert_allclose(clipped["a"], [1.2, 0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"]["c"], [[1.6]], rtol=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 5.0, 100.0])
def test_clipping_leaves_small_gradients_bit_equal(max_norm):
    grads = {"a": jnp.array([3.0, 0.1]), "b": jnp.array([3.9])}
    clipped, norm = clip_by_global_norm(grads, max_norm)
    jax.tree.map(np.testing.assert_array_equal, clipped, grads)
    np.testing.assert_allclose(norm, np.sqrt(9 + 0.01 + 3.9**2), rtol=1e-6)


def test_the_norm_is_computed_in_float32():
    clipped, norm = clip_by_global_norm({"a": jnp.ones(100_000, jnp.bfloat16)}, 1.0)
    np.testing.assert_allclose(norm, np.sqrt(100_000), rtol=1e-6)
    assert clipped["a"].dtype == jnp.bfloat16
    _, norm = clip_by_global_norm({"a": jnp.full(4, 300, jnp.float16)}, 1.0)  # squares overflow float16
    assert norm == 600


def test_frozen_parameters_do_not_count_in_the_norm():
    infos = {"a": ParamInfo("matrix", (None,)), "b": ParamInfo("sine", (None,), trainable=False)}
    clipped, norm = clip_by_global_norm({"a": jnp.array([3.0]), "b": jnp.array([4000.0])}, 3.0, infos)
    assert norm == 3
    np.testing.assert_array_equal(clipped["a"], [3.0])


def test_clipping_keeps_non_finite_gradients_non_finite():
    _, norm = clip_by_global_norm({"a": jnp.array([jnp.nan])}, 1.0)
    assert np.isnan(norm)
    _, norm = clip_by_global_norm({"a": jnp.array([jnp.inf])}, 1.0)
    assert np.isinf(norm)
