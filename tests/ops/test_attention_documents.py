"""ops/attention_documents.py: where packed documents begin and end."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.nn.positions import document_reach
from psann_jax.ops.attention_documents import document_numbers, lengths_and_starts


def test_numbers():
    # Padding is a document, and so is each run of an id that appears again.
    assert document_numbers(
        np.array([[1, 1, 2, 3, 3, 0, 0], [4, 4, 4, 4, 4, 4, 4], [1, 2, 1, 1, 0, 0, 1]])
    ).tolist() == [
        [0, 0, 1, 2, 2, 3, 3],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 2, 3, 3, 4],
    ]


def test_lengths_and_starts():
    numbers = np.array([[0, 0, 1, 2, 2], [0, 0, 0, 0, 0]])
    lengths, starts = lengths_and_starts(numbers, 0, 4)
    assert lengths.tolist() == [[2, 1, 2, -1], [5, -1, -1, -1]]
    assert starts.tolist() == [[0, 2, 3, -1], [0, -1, -1, -1]]
    lengths, starts = lengths_and_starts(numbers, 1, 2)
    assert lengths.tolist() == [[1, 2], [-1, -1]]
    assert starts.tolist() == [[2, 3], [-1, -1]]


@settings(deadline=None, max_examples=20)
@given(
    borders=st.lists(st.lists(st.booleans(), min_size=11, max_size=11), min_size=1, max_size=3), n=st.integers(1, 14)
)
def test_groups_of_documents_cover_the_window(borders, n):
    segment_ids = 1 + np.cumsum(np.array(borders), axis=1)
    numbers = document_numbers(segment_ids)
    covered = np.zeros(segment_ids.shape, int)
    reach = np.full(segment_ids.shape, -1)
    for first in range(0, 11, n):
        lengths, starts = lengths_and_starts(numbers, first, n)
        assert ((np.asarray(lengths) > 0) == (np.asarray(starts) >= 0)).all()
        for row, m in np.argwhere(np.asarray(lengths) > 0):
            tokens = slice(int(starts[row, m]), int(starts[row, m] + lengths[row, m]))
            covered[row, tokens] += 1
            reach[row, tokens] = np.arange(lengths[row, m])
    assert (covered == 1).all()
    np.testing.assert_array_equal(reach, document_reach(segment_ids))
