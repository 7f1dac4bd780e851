"""In bf16, no network sums more than a few numbers in 16 bits: the gradients of its parameters are float32 sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.config.families import family
from psann_jax.models import network as registry
from psann_jax.ops.cross_entropy import LossOptions, cross_entropy
from tests.support.variants import VARIANTS, quick_variants, variant

PRECISE = ["waveresnet_interleave", "ngt", pytest.param("ngt_value_soft", marks=pytest.mark.slow)]
SUMS = {"reduce_sum", "scatter-add", "cumsum", "reduce_window_sum"}


def narrow_sums(program):
    """The sums in a program, nested ones included, whose terms are 16-bit floats, with their shapes."""
    found = []
    for equation in program.eqns:
        if equation.primitive.name in SUMS and equation.invars[0].aval.dtype.itemsize == 2:
            found.append((equation.primitive.name, equation.invars[0].aval.shape))
        for value in equation.params.values():
            for part in value if isinstance(value, tuple) else (value,):
                part = getattr(part, "jaxpr", part)
                found += narrow_sums(part) if hasattr(part, "eqns") else []
    return found


@quick_variants
def test_gradients_of_a_language_model_are_summed_in_float32(name):
    network = registry.build(variant(name), dtype=jnp.bfloat16)

    def loss(params, tokens):
        model = network.merge(params)
        x, _, _ = model.hidden(tokens, jnp.ones_like(tokens), dropout_key=jax.random.key(0))
        kernel, bias = model.head_kernel()
        options = LossOptions(softcap=model.logit_softcap)
        return cross_entropy(x, kernel, tokens, jnp.ones(tokens.shape), bias_V=bias, options=options)[0]

    tokens = jax.ShapeDtypeStruct((2, 24), jnp.int32)
    assert narrow_sums(jax.make_jaxpr(jax.grad(loss))(network.abstract, tokens).jaxpr) == []


@pytest.mark.parametrize("positions", ["additive", "rope2d"])
def test_gradients_of_sudoku_are_summed_in_float32(positions):
    config = family("sudoku").model(
        d_model=16, n_layers=1, n_heads=4, d_mlp=24, iterations=2, positional_encoding=positions
    )
    network = registry.build(config, dtype=jnp.bfloat16)

    def loss(params, puzzles):
        return network.merge(params).run(puzzles, jnp.sum, dropout_key=jax.random.key(0)).sum()

    puzzles = jax.ShapeDtypeStruct((2, 81), jnp.uint8)
    assert narrow_sums(jax.make_jaxpr(jax.grad(loss))(network.abstract, puzzles).jaxpr) == []


def test_a_frequent_token_gets_its_whole_gradient():
    """The gradient of the embedding of a token that fills a quarter of a batch, against float32."""
    tokens = np.random.default_rng(0).integers(0, 31, (8, 512))
    tokens[:, ::4] = 3
    found = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        network = registry.build(variant("vanilla", n_layers=1, n_positions=512), dtype=dtype)
        params = network.init(jax.random.key(0))

        def loss(params, tokens, network=network):
            return jnp.sum(network.merge(params).hidden(tokens)[0].astype(jnp.float32)[..., 0])

        found[jnp.dtype(dtype).name] = jax.jit(jax.grad(loss))(params, tokens)["embed"][3]
    narrow, wide = (np.asarray(found[name]) for name in ("bfloat16", "float32"))
    assert np.linalg.norm(narrow - wide) < 0.05 * np.linalg.norm(wide)


@pytest.mark.parametrize("name", PRECISE)
def test_at_the_start_gradients_in_bf16_have_the_direction_of_those_in_float32(name):
    """Also where they are differences of nearly equal sums, as that of gamma is while all tokens are in one place."""
    tokens = np.minimum(np.random.default_rng(0).zipf(1.3, (4, 129)) - 1, 255)
    changes = {"vocab_size": 256, "d_model": 64, "d_mlp": 128}
    changes |= {"n_positions": 128, "init": "small"} if "n_positions" in VARIANTS[name] else {}
    found = []
    for dtype in (jnp.bfloat16, jnp.float32):
        network = registry.build(variant(name, **changes), dtype=dtype)

        def loss(params, network=network):
            model = network.merge(params)
            x, _, _ = model.hidden(tokens[:, :-1])
            kernel, bias = model.head_kernel()
            return cross_entropy(x, kernel, tokens[:, 1:], jnp.ones((4, 128)), bias_V=bias)[0]

        found.append(jax.jit(jax.grad(loss))(network.init(jax.random.key(0))))
    for (path, narrow), wide in zip(
        jax.tree_util.tree_leaves_with_path(found[0]), jax.tree.leaves(found[1]), strict=True
    ):
        norms = np.linalg.norm(narrow), np.linalg.norm(wide)
        if norms[1] > 1e-6:
            assert np.vdot(narrow, wide) > 0.99 * norms[0] * norms[1], jax.tree_util.keystr(path)
