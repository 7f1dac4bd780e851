"""Comparison of windows and batches."""

import numpy as np


def assert_elements_equal(found, expected):
    """Checks that two sequences of dicts of arrays are equal, with the types of the arrays."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True)
