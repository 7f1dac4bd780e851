"""Reach inside documents, rotary and sinusoidal positions."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.nn.positions import document_reach, rope_tables, rotate, sinusoidal_encoding


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_reach_counts_from_the_start_of_each_document(lengths):
    segment_ids = np.repeat(np.arange(len(lengths)) % 3, lengths)[None]  # ids may come again, not side by side
    expected = np.concatenate([np.arange(n) for n in lengths])
    np.testing.assert_array_equal(document_reach(jnp.asarray(segment_ids))[0], expected)


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def product(i, j):
        turned_q = rotate(q, rope_tables(jnp.array([[i]]), 8, jnp.float32))
        turned_k = rotate(k, rope_tables(jnp.array([[j]]), 8, jnp.float32))
        return float(jnp.sum(turned_q * turned_k))

    np.testing.assert_allclose(product(0, 0), jnp.sum(q * k), rtol=1e-5)
    np.testing.assert_allclose(product(105, 100), product(5, 0), rtol=1e-4)
    assert abs(product(5, 0) - product(6, 0)) > 1e-3


def test_rotary_tables_are_float32_in_half_precision():
    cos, _ = rope_tables(jnp.array([[1001]]), 8, jnp.bfloat16)
    assert cos.dtype == jnp.float32
    np.testing.assert_allclose(cos[0, 0, 0, 0], np.cos(1001.0), atol=1e-4)


def test_sinusoidal_encoding_interleaves_sines_and_cosines():
    encoding = sinusoidal_encoding(jnp.array([[0, 3]]), 4, jnp.float32)[0]
    np.testing.assert_allclose(encoding[0], [0, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(encoding[1], [np.sin(3), np.cos(3), np.sin(0.03), np.cos(0.03)], atol=1e-6)
