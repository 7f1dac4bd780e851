"""ops/tile_loop.py: which tiles are visited."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.ops.tile_loop import causal_visits


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(0, 3), min_size=4, max_size=4), st.booleans())
def test_every_visible_pair_is_visited_and_nothing_above_the_diagonal(n, seeds, contiguous):
    T = 4
    drawn = np.stack([np.random.default_rng(seed).integers(0, 4, n * T) for seed in seeds])
    ids = np.sort(drawn, 1) if contiguous else drawn
    queries, keys = causal_visits(T, n * T, ids)
    for b, i, j in np.ndindex(len(ids), n, n):
        pairs = np.arange(i * T, i * T + T)[:, None] >= np.arange(j * T, j * T + T)
        visible = (pairs & (ids[b, i * T : i * T + T, None] == ids[b, j * T : j * T + T])).any()
        by_query = queries.first_BxN[b, i] <= j < queries.last_BxN[b, i]
        by_key = keys.first_BxN[b, j] <= i < keys.last_BxN[b, j]
        assert by_query >= visible
        assert by_key >= visible
        assert j <= i or not (by_query or by_key)
    if contiguous and n > 1:
        first = np.asarray(queries.first_BxN)
        assert (first >= np.array([[np.argmax(row == row[i * T]) // T for i in range(n)] for row in ids])).all()


def test_without_documents_all_tiles_up_to_the_diagonal_are_visited():
    queries, keys = causal_visits(4, 12, None)
    np.testing.assert_array_equal(queries.first_BxN, [[0, 0, 0]])
    np.testing.assert_array_equal(queries.last_BxN, [[1, 2, 3]])
    np.testing.assert_array_equal(keys.first_BxN, [[0, 1, 2]])
    np.testing.assert_array_equal(keys.last_BxN, [[3, 3, 3]])
