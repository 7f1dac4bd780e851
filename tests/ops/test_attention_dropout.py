"""ops/attention_dropout.py: the masks of a kernel's tiles are those of the tiled implementation."""

import jax
import numpy as np
import pytest

from psann_jax.ops import tiles
from psann_jax.ops.attention_dropout import mask_factors, mask_form, mask_words
from psann_jax.ops.tiles import window_dropout_factors

B, H = 3, 2


def by_tiles(key, rate, length, T):
    """The factors of all rows and heads, tile by tile as a kernel computes them, (B, H, L, L)."""
    form, words = mask_form(rate, length), mask_words(key, B, H, length)
    starts = np.arange(0, length, T)

    @jax.jit
    @jax.vmap
    def of_head(first):
        rows = [[mask_factors(form, (first, words.words_N), T, i, j) for j in starts] for i in starts]
        return jax.numpy.block(rows)

    return of_head(words.first_BxH.reshape(-1)).reshape(B, H, len(starts) * T, -1)[:, :, :length, :length]


@pytest.mark.parametrize("rate", [0.1, 0.9])
@pytest.mark.parametrize(
    ("length", "T"),
    [
        (7, 16),  # one mask
        (40, 16),  # three masks, which end within tiles
        (48, 16),  # on their borders
        (64, 8),  # several tiles in a mask
    ],
)
def test_masks_are_those_of_the_tiled_implementation(length, T, rate, monkeypatch):
    monkeypatch.setattr(tiles, "_CPU_TILE", 16)
    key = jax.random.key(3)
    np.testing.assert_array_equal(by_tiles(key, rate, length, T), window_dropout_factors(key, rate, B, H, length))


def test_masks_of_rows_and_heads_differ():
    factors = by_tiles(jax.random.key(0), 0.5, 64, 16).reshape(B * H, -1)
    assert len(np.unique(factors, axis=0)) == B * H
