"""What must hold for every base and option: causal, no attention across documents, cached decoding equals the forward.

In float64, so that the tolerance is far below any real dependence; in float32, rounding of small distances is not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.models import network as registry
from tests.support.variants import SIZES, every_variant, quick_variants, randomised, variant

VOCAB = SIZES["vocab_size"]
ATOL = RTOL = 1e-9

float64 = pytest.mark.usefixtures("x64")


@functools.cache
def made(name):
    """A randomised model and its jitted full forward."""
    network = registry.build(variant(name), dtype=jnp.float64)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), randomised(network))

    @jax.jit
    def logits(tokens, segment_ids=None):
        model = network.merge(params)
        return model.logits(model.hidden(tokens, segment_ids)[0])

    @jax.jit
    def cached(tokens, segment_ids, cache):
        model = network.merge(params)
        x, cache, _ = model.hidden(tokens, segment_ids, cache=cache)
        return model.logits(x), cache

    return network.merge(params), logits, cached


def tokens_of(seed, *shape):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


# All tests of a variant take windows of these shapes, so that each is compiled once.
SHORT, LONG = (2, 24), (2, 48)


@float64
@every_variant
def test_changing_later_tokens_changes_no_earlier_logit(name):
    _, logits, _ = made(name)
    tokens = tokens_of(0, *SHORT)
    before = logits(tokens)
    for cut in (1, 7, 16, 23):
        changed = tokens.copy()
        changed[:, cut:] = (changed[:, cut:] + 1 + tokens_of(cut, *changed[:, cut:].shape) % (VOCAB - 1)) % VOCAB
        after = logits(changed)
        np.testing.assert_array_equal(after[:, :cut], before[:, :cut])
        assert np.abs(after[:, cut:] - before[:, cut:]).max() > 1e-3


@float64
@every_variant
def test_appending_tokens_changes_no_logit(name):
    _, logits, _ = made(name)
    tokens = tokens_of(1, *LONG)
    np.testing.assert_allclose(logits(tokens[:, :24]), logits(tokens)[:, :24], atol=ATOL, rtol=RTOL)


@float64
@every_variant
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_logits_of_a_packed_document_equal_its_logits_alone(name, data):
    _, logits, _ = made(name)
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    lengths.append(LONG[1] - sum(lengths))
    segment_ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None].repeat(2, axis=0)
    tokens = tokens_of(lengths[0], *LONG)
    packed = logits(tokens, segment_ids)
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        alone = np.zeros_like(tokens)
        alone[:, : end - start] = tokens[:, start:end]
        np.testing.assert_allclose(packed[:, start:end], logits(alone)[:, : end - start], atol=ATOL, rtol=RTOL)


@float64
@every_variant
def test_token_by_token_decoding_equals_the_full_forward(name):
    model, logits, cached = made(name)
    tokens = tokens_of(3, *SHORT)
    full, cache = logits(tokens), model.init_cache(2, 30)
    for t in range(tokens.shape[1]):
        step, cache = cached(tokens[:, t : t + 1], None, cache)
        np.testing.assert_allclose(step[:, 0], full[:, t], atol=ATOL, rtol=RTOL)
    np.testing.assert_array_equal(cache["length"], [24, 24])


@float64
@quick_variants
def test_split_prefill_of_rows_of_different_lengths_equals_the_full_forward(name):
    model, logits, cached = made(name)
    tokens = tokens_of(4, *SHORT)
    full, cache = logits(tokens), model.init_cache(2, 24)
    done = np.zeros(2, int)
    for counts in ([5, 1], [8, 6], [0, 4], [1, 1], [8, 8]):
        chunk = np.zeros((2, 8), int)
        for row, count in enumerate(counts):
            chunk[row, :count] = tokens[row, done[row] : done[row] + count]
        valid = (np.arange(8) < np.array(counts)[:, None]).astype(np.int32)
        out, cache = cached(chunk, valid, cache)
        for row, count in enumerate(counts):
            expected = full[row, done[row] : done[row] + count]
            np.testing.assert_allclose(out[row, :count], expected, atol=ATOL, rtol=RTOL)
        done += counts
    np.testing.assert_array_equal(cache["length"], done)


@functools.cache
def loss_and_grads(name, remat="none", scan_layers=True):
    """With dropout."""
    network = registry.build(variant(name, dropout=0.1, n_layers=3), remat=remat, scan_layers=scan_layers)
    tokens, key = tokens_of(5, 2, 12), jax.random.key(3)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        model = network.merge(params)
        return jnp.square(model.logits(model.hidden(tokens, dropout_key=key)[0])).mean()

    return loss(randomised(network))


@pytest.mark.parametrize(
    ("name", "remat", "scan_layers"),
    [
        pytest.param("waveresnet_dilated", "none", False, marks=pytest.mark.slow),
        pytest.param("waveresnet_dilated", "dots", True, marks=pytest.mark.slow),
        ("waveresnet_dilated", "block", True),
        pytest.param("ngt_value_soft", "full", False, marks=pytest.mark.slow),
    ],
)
def test_rematerialisation_and_unrolling_change_no_value(name, remat, scan_layers):
    loss, grads = loss_and_grads(name)
    other_loss, other_grads = loss_and_grads(name, remat, scan_layers)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    # Other dropout masks would show; sums of float32 in another order do not.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max()), other_grads, grads)


@quick_variants
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(name):
    network = registry.build(variant(name))
    tokens = tokens_of(6, 2, 24)

    @jax.jit
    @jax.grad
    def grads(params):
        model = network.merge(params)
        x, _, aux = model.hidden(tokens)
        return sum(jnp.square(y).mean() for y in (model.logits(x), *aux.values()))

    def check(info, grad):
        moved = np.abs(grad).reshape(grad.shape[0], -1).max(axis=1)
        assert (moved > 0).all() if info.trainable and info.kind not in ("embedding", "table") else True
        assert info.trainable or (moved == 0).all()

    jax.tree.map(check, network.infos, grads(randomised(network)))


def test_dropout_acts_and_depends_on_its_key_only():
    network = registry.build(variant("waveresnet_interleave", dropout=0.5))
    params, tokens = randomised(network), tokens_of(7, 2, 12)

    @jax.jit
    def hidden(key):
        return network.merge(params).hidden(tokens, dropout_key=key)[0]

    np.testing.assert_array_equal(hidden(jax.random.key(0)), hidden(jax.random.key(0)))
    assert np.abs(hidden(jax.random.key(0)) - hidden(jax.random.key(1))).max() > 1e-2
    assert np.abs(hidden(jax.random.key(0)) - hidden(None)).max() > 1e-2
