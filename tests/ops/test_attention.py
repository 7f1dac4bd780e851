"""ops/attention.py: the tiled implementation against the plain one, the plain one against numpy."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.ops import tiles
from psann_jax.ops.attention import alibi_slopes, cached_attention, causal_attention
from psann_jax.ops.tiles import Dropout

close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)


def draw(B, L, H, K, seed=0, n=4, G=None):
    """q, k, v and the gradient of the output; k and v of G heads."""
    rng = np.random.default_rng(seed)
    heads = (H, G or H, G or H, H)
    return [rng.standard_normal((B, L, H, K))[:, :, :some] for some in heads[:n]]


def documents(B, L, seed):
    """Segment ids of random documents, with padding (0) at the end of some rows."""
    rng = np.random.default_rng(seed)
    segment_ids = 1 + np.cumsum(rng.random((B, L)) < rng.choice([0, 0.05, 0.5]), axis=1)
    padding = rng.integers(0, L, B) * rng.integers(0, 2, B)
    segment_ids[np.arange(L)[None] >= L - padding[:, None]] = 0
    return segment_ids.astype("int32")


def value_and_gradients(q, k, v, dout, **kwargs):
    @jax.jit
    def run(q, k, v, dout):
        out, vjp = jax.vjp(partial(causal_attention, **kwargs), q, k, v)
        return out, vjp(dout.astype(out.dtype))

    return run(q, k, v, dout)


def by_loop(q, k, v, segment_ids, slopes, window=99):
    """Attention with a loop over queries."""
    out, group = np.zeros_like(q), q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        seen = [j for j in range(max(0, i + 1 - window), i + 1) if segment_ids[b, j] == segment_ids[b, i]]
        g = h // group
        s = np.array([q[b, i, h] @ k[b, j, g] / q.shape[3] ** 0.5 - slopes[h] * (i - j) for j in seen])
        p = np.exp(s - s.max())
        out[b, i, h] = (p / p.sum()) @ v[b, seen, g]
    return out


@pytest.mark.parametrize("implementation", ["plain", "xla"])
def test_equals_a_loop_over_queries(implementation, x64, monkeypatch):
    monkeypatch.setattr(tiles, "_CPU_TILE", 5)
    q, k, v = draw(2, 13, 3, 4, n=3)
    segment_ids, slopes = documents(2, 13, 3), np.array(alibi_slopes(3), "float64")
    got = causal_attention(q, k, v, segment_ids_BxL=segment_ids, alibi_slopes_H=slopes, implementation=implementation)
    close(got, by_loop(q, k, v, segment_ids, slopes))
    got = causal_attention(q, k, v, implementation=implementation)
    close(got, by_loop(q, k, v, np.ones((2, 13)), np.zeros(3)))


@pytest.mark.parametrize("implementation", ["plain", "xla"])
@pytest.mark.parametrize(("G", "window"), [(1, 0), (2, 1), (2, 5), (4, 6), (1, 4), (2, 40)])
def test_grouped_heads_and_sliding_windows_equal_a_loop_over_queries(G, window, implementation, x64, monkeypatch):
    monkeypatch.setattr(tiles, "_CPU_TILE", 5)
    q, k, v = draw(2, 13, 4, 3, n=3, G=G)
    segment_ids, slopes = documents(2, 13, 3), np.array(alibi_slopes(4), "float64")
    options = {"window": window, "implementation": implementation}
    got = causal_attention(q, k, v, segment_ids_BxL=segment_ids, alibi_slopes_H=slopes, **options)
    close(got, by_loop(q, k, v, segment_ids, slopes, window or 99))
    close(causal_attention(q, k, v, **options), by_loop(q, k, v, np.ones((2, 13)), np.zeros(4), window or 99))


@settings(deadline=None, max_examples=6)
@given(
    B=st.integers(1, 3),
    L=st.integers(1, 40),
    H=st.integers(1, 3),
    K=st.integers(1, 5),
    tile=st.sampled_from([3, 8, 16, 128]),
    packed=st.booleans(),
    alibi=st.booleans(),
    dropout=st.sampled_from([0.0, 0.4]),
)
def test_tiled_equals_plain(B, L, H, K, tile, packed, alibi, dropout):
    options = {
        "segment_ids_BxL": documents(B, L, L) if packed else None,
        "alibi_slopes_H": alibi_slopes(H) if alibi else None,
        "dropout": Dropout(jax.random.key(L) if dropout else None, dropout),
    }
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_CPU_TILE", tile)
        inputs = draw(B, L, H, K, seed=L)
        plain = value_and_gradients(*inputs, **options, implementation="plain")
        tiled = value_and_gradients(*inputs, **options, implementation="xla")
    jax.tree.map(close, tiled, plain)


@settings(deadline=None, max_examples=6)
@given(
    L=st.integers(1, 40),
    heads=st.sampled_from([(4, 1), (4, 2), (4, 4), (6, 3)]),
    window=st.sampled_from([1, 2, 7, 8, 9, 10, 15, 16, 17, 39, 40, 41]),  # beside the borders of tiles of 8, and L
    packed=st.booleans(),
    alibi=st.booleans(),
    dropout=st.sampled_from([0.0, 0.4]),
)
def test_tiled_equals_plain_with_grouped_heads_and_a_sliding_window(L, heads, window, packed, alibi, dropout):
    H, G = heads
    options = {
        "segment_ids_BxL": documents(2, L, L) if packed else None,
        "alibi_slopes_H": alibi_slopes(H) if alibi else None,
        "dropout": Dropout(jax.random.key(L) if dropout else None, dropout),
        "window": window,
    }
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_CPU_TILE", 8)
        inputs = draw(2, L, H, 3, seed=L, G=G)
        plain = value_and_gradients(*inputs, **options, implementation="plain")
        tiled = value_and_gradients(*inputs, **options, implementation="xla")
    jax.tree.map(close, tiled, plain)


@pytest.mark.parametrize("implementation", ["plain", "xla"])
def test_a_shared_head_of_keys_gets_the_gradients_of_all_that_share_it(implementation, x64):
    q, k, v, dout = draw(1, 20, 6, 4, G=2)
    options = {"window": 7, "implementation": implementation}
    out, (dq, dk, dv) = value_and_gradients(q, k, v, dout, **options)
    repeated = (np.repeat(a, 3, axis=2) for a in (k, v))
    want, (dq_each, dk_each, dv_each) = value_and_gradients(q, *repeated, dout, **options)
    close(out, want)
    close(dq, dq_each)
    close(dk, dk_each.reshape(1, 20, 2, 3, 4).sum(3))
    close(dv, dv_each.reshape(1, 20, 2, 3, 4).sum(3))


@pytest.mark.parametrize("implementation", ["plain", "xla"])
@pytest.mark.parametrize("window", [1, 4, 100, 129, 250])
def test_a_token_changes_the_outputs_of_exactly_its_window(window, implementation):
    q, k, v = (jnp.asarray(a, "float32") for a in draw(1, 300, 2, 8, n=3, G=1))
    attend = jax.jit(partial(causal_attention, window=window, implementation=implementation))
    before, after = attend(q, k, v), attend(q, k.at[:, 100].add(1), v.at[:, 100].add(1))
    changed = (np.asarray(before) != after).any(axis=(0, 2, 3))
    np.testing.assert_array_equal(changed, (np.arange(300) >= 100) & (np.arange(300) < 100 + window))


def test_tiles_outside_the_sliding_window_are_not_computed():
    """The lengths of the loops over pairs of tiles, forward and backward."""
    inputs = [jax.ShapeDtypeStruct((1, 1024, 2, 8), jnp.float32)] * 4

    def pairs(window):
        def run(q, k, v, dout):
            return jax.vjp(partial(causal_attention, window=window, implementation="xla"), q, k, v)[1](dout)

        return [int(n) for n in re.findall(r"length=(\d+)", str(jax.make_jaxpr(run)(*inputs)))]

    assert pairs(0) == pairs(1024) == [36, 36]
    assert pairs(1) == [8, 8]
    assert pairs(129) == [15, 15]
    assert pairs(130) == [21, 21]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.05)])
def test_lower_precision_with_grouped_heads_and_a_sliding_window(dtype, tolerance):
    inputs = [jnp.asarray(a, dtype) for a in draw(2, 301, 4, 16, G=2)]
    options = {"segment_ids_BxL": documents(2, 301, 1), "window": 130}
    with jax.enable_x64(True):
        wide = [np.asarray(a, "float64") for a in inputs]
        want = value_and_gradients(*wide, **options, implementation="plain")
    for implementation in ("plain", "xla"):
        got = value_and_gradients(*inputs, **options, implementation=implementation)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(np.asarray(a, "float64"), b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.05), ("float16", 0.005)])
def test_lower_precision(dtype, tolerance):
    inputs = [jnp.asarray(a, dtype) for a in draw(2, 300, 2, 16)]
    segment_ids = documents(2, 300, 1)
    with jax.enable_x64(True):
        wide = [np.asarray(a, "float64") for a in inputs]
        want = value_and_gradients(*wide, segment_ids_BxL=segment_ids, implementation="plain")
    for implementation in ("plain", "xla"):
        got = value_and_gradients(*inputs, segment_ids_BxL=segment_ids, implementation=implementation)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(np.asarray(a, "float64"), b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("implementation", ["plain", "xla"])
def test_later_tokens_change_nothing(implementation):
    q, k, v = (a.astype("float32") for a in draw(1, 300, 2, 8, n=3))
    before = causal_attention(q, k, v, implementation=implementation)
    for a in (q, k, v):
        a[:, 170:] = 1e3
    after = causal_attention(q, k, v, implementation=implementation)
    np.testing.assert_array_equal(before[:, :170], after[:, :170])
    assert (before[:, 170:] != after[:, 170:]).all()


@pytest.mark.parametrize("implementation", ["plain", "xla"])
def test_a_packed_document_equals_the_document_alone(implementation, x64, monkeypatch):
    monkeypatch.setattr(tiles, "_CPU_TILE", 16)
    inputs = draw(1, 60, 2, 8)
    segment_ids = np.repeat([[1, 2, 0]], [23, 30, 7], axis=1)
    got = value_and_gradients(*inputs, segment_ids_BxL=segment_ids, implementation=implementation)
    alone = value_and_gradients(*(a[:, 23:53] for a in inputs), implementation=implementation)
    jax.tree.map(lambda a, b: close(a[:, 23:53], b), got, alone)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(got))


def test_scores_that_overflow_exp_give_finite_values():
    q, k, v, dout = draw(1, 40, 1, 8)
    got = value_and_gradients(1e4 * q, 1e4 * k, v, dout, implementation="xla")
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(got))


def test_dropout_drops_its_rate_and_keeps_the_mean(monkeypatch):
    monkeypatch.setattr(tiles, "_CPU_TILE", 16)
    L = 40
    q, k = (jnp.zeros((4, L, 2, L)) for _ in range(2))
    v = jnp.broadcast_to(jnp.eye(L)[None, :, None], q.shape)  # makes the output the weights themselves

    @jax.jit
    def weights(seed):
        p = causal_attention(q, k, v, dropout=Dropout(jax.random.key(seed), 0.25), implementation="xla")
        return p.transpose(0, 2, 1, 3)

    p = np.asarray(weights(0))
    lower = np.broadcast_to(np.tril(np.ones((L, L), bool)), p.shape)
    assert abs((p[lower] == 0).mean() - 0.25) < 0.01
    keep_mask = lower & (p > 0)
    np.testing.assert_allclose(p[keep_mask], (1 / 0.75 / np.arange(1, L + 1))[np.nonzero(keep_mask)[2]], rtol=1e-5)
    assert (p[~lower] == 0).all()
    np.testing.assert_array_equal(p, weights(0))
    for a, b in (
        (p, weights(1)),
        (p[0], p[1]),
        (p[:, 0], p[:, 1]),
        (p[..., 16:32, :16], p[..., 32:, 8:24][..., :8, :]),
    ):
        size = min(a.shape[-2], b.shape[-2])
        same = (a[..., :size, :] == 0) == (b[..., :size, :] == 0)
        assert same.mean() < 0.9


def test_memory_is_linear_in_length():
    def temporaries(L):
        inputs = [jax.ShapeDtypeStruct((1, L, 2, 8), jnp.float32)] * 4

        def run(q, k, v, dout):
            return jax.vjp(partial(causal_attention, implementation="xla"), q, k, v)[1](dout)

        return jax.jit(run).lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 2.5 * temporaries(2048)


def test_no_square_array_is_saved_for_the_backward_pass():
    q, k, v, _ = (jnp.asarray(a, "float32") for a in draw(1, 256, 2, 8))
    _, vjp = jax.vjp(partial(causal_attention, implementation="xla"), q, k, v)
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) == 4 * q.size + q.size // 8  # q, k, v, out, logsumexp


def test_under_checkpoint_scan_and_vmap():
    q, k, v, dout = (jnp.asarray(a, "float32") for a in draw(4, 40, 2, 8))
    segment_ids = jnp.asarray(documents(4, 40, 2))
    keys = jax.random.split(jax.random.key(0), 4)

    def attend(q, k, v, segment_ids, key):
        options = {"segment_ids_BxL": segment_ids[None], "dropout": Dropout(key, 0.2), "implementation": "xla"}
        return causal_attention(q[None], k[None], v[None], **options)[0]

    def vmapped(q, k, v):
        return jax.vmap(attend)(q, k, v, segment_ids, keys)

    def scanned(q, k, v):
        return jax.lax.scan(lambda _, row: (None, jax.checkpoint(attend)(*row)), None, (q, k, v, segment_ids, keys))[1]

    def one_by_one(q, k, v):
        return jnp.stack([attend(q[i], k[i], v[i], segment_ids[i], keys[i]) for i in range(4)])

    want = jax.jit(lambda: (lambda o, g: (o, g(dout)))(*jax.vjp(one_by_one, q, k, v)))()
    for fn in (vmapped, scanned):
        got = jax.jit(lambda fn=fn: (lambda o, g: (o, g(dout)))(*jax.vjp(fn, q, k, v)))()
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize(("G", "window"), [(4, 0), (1, 0), (2, 1), (2, 3), (4, 6), (1, 30)])
def test_cached_attention_equals_the_full_forward_pass(alibi, G, window, x64):
    B, L, S = 2, 9, 14
    q, k, v = draw(B, S, 4, 4, n=3, G=G)
    slopes = alibi_slopes(4) if alibi else None
    full = causal_attention(q, k, v, window=window, alibi_slopes_H=slopes, implementation="plain")
    index = np.array([np.arange(L), np.arange(L) + 4])  # rows at different positions of their sequences
    queries = np.take_along_axis(q, index[:, :, None, None], axis=1)
    got = cached_attention(queries, k, v, index, window=window, alibi_slopes_H=slopes)
    close(got, np.take_along_axis(np.asarray(full), index[:, :, None, None], axis=1))
    k[0, L:], v[0, L:] = 99.0, -99.0  # slots not yet written by row 0
    close(cached_attention(queries, k, v, index, window=window, alibi_slopes_H=slopes), got)


def test_alibi_slopes():
    eight = [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(8).tolist() == eight
    assert alibi_slopes(4).tolist() == [0.25, 0.0625, 0.015625, 0.00390625]
    assert alibi_slopes(6).tolist() == [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]
    np.testing.assert_allclose(alibi_slopes(12), [*eight, *(2 ** -(i + 0.5) for i in range(4))], rtol=1e-6)
    assert alibi_slopes(1).tolist() == [2.0**-8]
