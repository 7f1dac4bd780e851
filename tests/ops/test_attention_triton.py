"""ops/attention_triton.py against the plain implementation, interpreted on a CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.ops import attention_triton, kernels
from psann_jax.ops.attention import causal_attention
from psann_jax.ops.attention_dropout import mask_words
from psann_jax.ops.attention_reference import Variant
from psann_jax.ops.attention_triton import tile_length, triton_attention
from psann_jax.ops.tiles import Dropout
from tests.ops.test_attention import documents, draw
from tests.support.attention import at_borders, check_example, compare_with_plain

interpreted = partial(triton_attention, interpret=True)


@settings(deadline=None, max_examples=5)
@given(
    B=st.integers(1, 2),
    L=st.integers(1, 70),
    K=st.sampled_from([3, 8, 16, 40]),
    tile=st.sampled_from([16, 32]),
    packed=st.booleans(),
)
def test_equals_plain(B, L, K, tile, packed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_triton, "tile_length", lambda *_: tile)
        segment_ids = documents(B, L, L) if packed else None
        compare_with_plain(interpreted, draw(B, L, 2, K, seed=L), segment_ids, "float32", 2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.02), ("float16", 0.003), ("float32", 2e-6)])
def test_borders_on_and_beside_those_of_tiles(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(attention_triton, "tile_length", lambda *_: 16)
    compare_with_plain(interpreted, draw(2, 50, 1, 16), at_borders(50, 16), dtype, tolerance)


def dropping(dropout):
    """The kernel, with these weights dropped."""

    def attend(q, k, v, segment_ids, window):
        B, L, H, _ = q.shape
        words = mask_words(dropout.key, B, H, L)
        return interpreted(q, k, v, segment_ids, words, window=window, dropout_rate=dropout.rate)

    return attend


@settings(deadline=None, max_examples=5)
@given(
    B=st.integers(1, 2),
    L=st.integers(1, 150),  # from 129 on, the masks have borders of their own
    K=st.sampled_from([3, 16, 40]),
    tile=st.sampled_from([16, 32]),
    rate=st.sampled_from([0.1, 0.5, 0.9]),
    packed=st.booleans(),
)
def test_dropout_equals_plain(B, L, K, tile, rate, packed):
    dropout = Dropout(jax.random.key(L), rate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_triton, "tile_length", lambda *_: tile)
        segment_ids = documents(B, L, L) if packed else None
        compare_with_plain(dropping(dropout), draw(B, L, 2, K, seed=L), segment_ids, "float32", 3e-6, dropout=dropout)


@pytest.mark.parametrize("rate", [0.1, pytest.param(0.9, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.02), ("float32", 3e-6)])
@pytest.mark.parametrize("L", [131, 256])  # borders of masks within tiles of the kernel, and on their borders
def test_dropout_with_documents_and_padding(L, dtype, tolerance, rate, monkeypatch):
    monkeypatch.setattr(attention_triton, "tile_length", lambda *_: 32)
    dropout = Dropout(jax.random.key(1), rate)
    compare_with_plain(dropping(dropout), draw(2, L, 2, 16), at_borders(L, 32), dtype, tolerance, dropout=dropout)


@pytest.mark.parametrize(
    ("L", "G", "window", "dtype", "tolerance"),
    [
        (49, 1, 0, "float32", 2e-6),
        (50, 2, 1, "float32", 2e-6),
        (49, 2, 15, "bfloat16", 0.02),
        (50, 4, 16, "float32", 2e-6),
        (33, 1, 17, "float16", 0.003),
        (50, 2, 18, "float32", 2e-6),
        (33, 2, 99, "float32", 2e-6),
    ],
)
def test_grouped_heads_and_sliding_windows(L, G, window, dtype, tolerance, monkeypatch):
    """Windows on and beside the borders of tiles, and longer than the row."""
    monkeypatch.setattr(attention_triton, "tile_length", lambda *_: 16)
    segment_ids = None if L == 49 else at_borders(L, 16)
    compare_with_plain(interpreted, draw(2, L, 4, 16, G=G), segment_ids, dtype, tolerance, window)


@pytest.mark.parametrize(
    ("L", "G", "window", "rate", "dtype", "tolerance"),
    [
        (131, 1, 40, 0.5, "float32", 3e-6),
        (131, 2, 33, 0.1, "bfloat16", 0.02),
        (150, 2, 0, 0.9, "float32", 3e-6),
        (150, 4, 65, 0.5, "float32", 3e-6),
        (256, 2, 129, 0.5, "float32", 3e-6),
        (50, 1, 1, 0.5, "float32", 3e-6),
    ],
)
def test_dropout_with_grouped_heads_and_sliding_windows(L, G, window, rate, dtype, tolerance, monkeypatch):
    """Each head of queries of a group has its own mask."""
    monkeypatch.setattr(attention_triton, "tile_length", lambda *_: 32)
    dropout, segment_ids = Dropout(jax.random.key(L), rate), None if L == 150 else at_borders(L, 32)
    inputs = draw(2, L, 4, 16, seed=G, G=G)
    compare_with_plain(dropping(dropout), inputs, segment_ids, dtype, tolerance, window, dropout)


def test_no_document_reads_another(monkeypatch):
    """Each document has the values that it has alone, although those of the others are huge."""
    monkeypatch.setattr(attention_triton, "tile_length", lambda *_: 16)
    q, k, v, _ = (jnp.asarray(a, "float32") for a in draw(1, 40, 1, 16))
    segment_ids = np.array([[1] * 10 + [2] * 20 + [1] * 6 + [0] * 4])
    for part in (slice(0, 10), slice(10, 30), slice(30, 36)):
        mine = np.zeros((1, 40, 1, 1), bool)
        mine[:, part] = True
        got = interpreted(q, jnp.where(mine, k, 1e4), jnp.where(mine, v, 1e4), segment_ids)
        alone = causal_attention(*(a[:, part] for a in (q, k, v)), implementation="plain")
        np.testing.assert_allclose(got[:, part], alone, rtol=1e-5, atol=1e-5)


def test_only_tiles_of_own_documents_are_read():
    numbers = jnp.array([[0] * 5 + [1] * 3 + [2] * 4 + [-1] * 4])
    rows = attention_triton._rows(numbers, 4, 0)
    assert rows.first_Bxn.tolist() == [[0, 0, 2, 3]]  # tile 1 begins in document 0
    assert rows.last_Bxn.tolist() == [[1, 1, 2, 3]]  # tile 0 ends in document 0


def test_only_tiles_of_the_sliding_window_are_read():
    numbers = jnp.zeros((1, 20), jnp.int32)
    for window, back in ((1, 0), (2, 1), (5, 1), (6, 2), (99, 4)):
        rows = attention_triton._rows(numbers, 4, window)
        assert rows.first_Bxn.tolist() == [[max(0, i - back) for i in range(5)]]
        assert rows.last_Bxn.tolist() == [[min(4, i + back) for i in range(5)]]


def test_tile_length():
    assert [tile_length(K, "bfloat16") for K in (16, 128, 256)] == [64, 64, 32]
    assert [tile_length(K, "float32") for K in (16, 128, 256)] == [32, 32, 16]


def test_float32_does_not_use_tf32_alone():
    x = jnp.zeros((1, 16, 1, 16))
    text = str(jax.make_jaxpr(jax.grad(lambda x: triton_attention(x, x, x, None).sum()))(x))
    assert text.count("dot_general[") == text.count("precision=TF32_TF32_F32_X3") > 0


@pytest.mark.parametrize(
    "variant",
    [
        Variant("bfloat16", dropout=0.1),
        Variant("float32", 40, group=2, has_window=True),
        pytest.param(Variant("float16", 160, has_segment_ids=False), marks=pytest.mark.slow),
        pytest.param(Variant("float32", dropout=0.5), marks=pytest.mark.slow),
    ],
)
def test_examples(variant, monkeypatch):
    monkeypatch.setattr(attention_triton, "triton_attention", interpreted)
    example = kernels.EXAMPLES["attention.triton"](*variant)
    check_example(example, example.kernel)
