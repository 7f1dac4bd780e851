"""ops/attention_splash.py against the plain implementation, interpreted on a CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.ops import attention_splash, kernels
from psann_jax.ops.attention import causal_attention
from psann_jax.ops.attention_reference import Variant
from psann_jax.ops.attention_splash import blocks, splash_attention
from tests.ops.test_attention import draw
from tests.support.attention import at_borders, check_example, compare_with_plain

interpreted = partial(splash_attention, interpret=True)


@pytest.mark.parametrize(
    ("L", "K", "dtype", "tolerance"),
    [(1, 8, "float32", 2e-6), (131, 24, "float32", 2e-6), (256, 16, "bfloat16", 0.02), (300, 64, "bfloat16", 0.02)],
)
@pytest.mark.parametrize("fused", [False, True])
def test_equals_plain(L, K, dtype, tolerance, fused, monkeypatch):
    monkeypatch.setattr(attention_splash, "_LARGEST_BLOCK", 128)
    monkeypatch.setattr(attention_splash, "_FUSED_BLOCKS", 9 if fused else 0)
    segment_ids = at_borders(L, 128) if fused else None
    compare_with_plain(interpreted, draw(2, L, 1, K, seed=L), segment_ids, dtype, tolerance)


@pytest.mark.parametrize(
    ("L", "G", "window", "fused"),
    [(131, 1, 0, True), (256, 2, 127, False), (300, 2, 128, True), (300, 4, 129, True), (9, 2, 50, True)],
)
def test_grouped_heads_and_sliding_windows(L, G, window, fused, monkeypatch):
    monkeypatch.setattr(attention_splash, "_LARGEST_BLOCK", 128)
    monkeypatch.setattr(attention_splash, "_FUSED_BLOCKS", 9 if fused else 0)
    segment_ids = at_borders(L, 128) if window != 128 else None
    compare_with_plain(interpreted, draw(2, L, 4, 8, seed=L, G=G), segment_ids, "float32", 2e-6, window)


def test_no_document_reads_another():
    """Each document has the values that it has alone, although those of the others are huge."""
    q, k, v, _ = (jnp.asarray(a, "float32") for a in draw(1, 140, 1, 16))
    segment_ids = np.array([[1] * 10 + [2] * 118 + [1] * 6 + [0] * 6])
    for part in (slice(0, 10), slice(10, 128), slice(128, 134)):
        mine = np.zeros((1, 140, 1, 1), bool)
        mine[:, part] = True
        got = interpreted(q, jnp.where(mine, k, 1e4), jnp.where(mine, v, 1e4), segment_ids)
        alone = causal_attention(*(a[:, part] for a in (q, k, v)), implementation="plain")
        np.testing.assert_allclose(got[:, part], alone, rtol=1e-5, atol=1e-5)


def test_blocks_are_multiples_of_128():
    assert [blocks(L) for L in (1, 128, 129, 512, 513, 640, 1000, 8192)] == [
        (1, 128),
        (1, 128),
        (1, 256),
        (1, 512),
        (2, 384),
        (2, 384),
        (2, 512),
        (16, 512),
    ]


@pytest.mark.parametrize(
    "variant",
    [
        Variant(),
        Variant("float32", 32, group=2, has_window=True, has_segment_ids=False),
        pytest.param(Variant(is_long=True), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["splash", pytest.param("splash_gathered", marks=pytest.mark.slow)])
def test_examples(name, variant, monkeypatch):
    monkeypatch.setattr(attention_splash, "splash_attention", interpreted)
    example = kernels.EXAMPLES[f"attention.{name}"](*variant)
    check_example(example, example.kernel)


def test_the_example_has_the_form_of_long_windows():
    shapes = []
    for is_long in (False, True):
        example = kernels.EXAMPLES["attention.splash"](*Variant(is_long=is_long))
        q, _, _ = jax.eval_shape(example.inputs, jax.random.key(0))
        shapes.append(q.shape[1])
    assert [attention_splash.is_long(length, 1) for length in shapes] == [False, True]
    assert blocks(shapes[0])[0] > 1, "more than one block"
