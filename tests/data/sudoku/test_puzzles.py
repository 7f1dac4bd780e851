"""The order in which a part of the puzzles is evaluated."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from psann_jax.data.sudoku.puzzles import stratified_order


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_every_beginning_has_its_part_of_each_bucket(counts, seed):
    buckets = np.repeat(np.arange(len(counts)) - 1, counts)  # in order of difficulty, as generated
    order = stratified_order(buckets, seed)
    assert sorted(order) == list(range(len(buckets)))
    for n in range(1, len(buckets) + 1):
        found = np.bincount(buckets[order[:n]] + 1, minlength=len(counts))
        expected = n * np.array(counts) / len(buckets)
        assert np.abs(found - expected).max() <= 1 + len(counts) * max(counts) / len(buckets)


def test_the_order_depends_on_the_seed_alone():
    buckets = np.repeat([0, 1, 4], [60, 30, 1])
    orders = [stratified_order(buckets, seed).tolist() for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]
    assert len({order.index(90) for order in orders}) == 2  # the one hard puzzle stands anywhere
    assert stratified_order(np.zeros(0, int), 0).tolist() == []
