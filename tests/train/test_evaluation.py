"""Sums of an evaluation, and the file of losses by window."""

import numpy as np
import pytest

from psann_jax.train.evaluation import WINDOWS, EvaluationSums, WindowLosses
from psann_jax.train.loss_parts import LossParts
from psann_jax.utils.errors import UserError


def batch(nll, weight):
    sums = {"nll": np.float32(sum(nll)), "weight": np.float32(sum(weight))}
    return sums | {"nll_B": np.float32(nll), "weight_B": np.float32(weight)}


def test_batches_are_added_and_padding_rows_at_the_end_are_dropped():
    sums = EvaluationSums()
    sums.add(batch([1.0, 2.0], [4, 0]))
    sums.add(batch([3.0, 0.0], [5, 0]))
    assert sums.totals == {"nll": 6.0, "weight": 9.0}
    windows = sums.windows(7, "text")
    np.testing.assert_array_equal(windows.nll_W, [1, 2, 3])
    np.testing.assert_array_equal(windows.weight_W, [4, 0, 5])
    assert (windows.step, windows.data) == (7, "text")


def test_a_task_without_rows_has_no_windows():
    sums = EvaluationSums()
    assert sums.windows(0, "") is None
    sums.add({"nll": np.float32(1)})
    assert sums.windows(0, "") is None


def test_the_file_comes_back(tmp_path):
    assert WindowLosses.read(tmp_path) is None
    sums = EvaluationSums()
    sums.add(batch([1.5, 2.5], [4, 5]))
    sums.windows(40, "text").write(tmp_path)
    found = WindowLosses.read(tmp_path)
    np.testing.assert_array_equal((found.nll_W, found.weight_W), [[1.5, 2.5], [4, 5]])
    assert (found.step, found.data) == (40, "text")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / WINDOWS).write_bytes(content)
    with pytest.raises(UserError, match=f"{WINDOWS}: is damaged"):
        WindowLosses.read(tmp_path)


def test_arrays_of_different_lengths_are_damage(tmp_path):
    WindowLosses(np.zeros(3), np.zeros(2), 1).write(tmp_path)
    with pytest.raises(UserError, match="its arrays do not match"):
        WindowLosses.read(tmp_path)


class Halves:
    """Two parts of windows of four targets: the first two, and the others; the last window has one target."""

    names = {"half": ("first", "second")}  # noqa: RUF012

    def of_rows(self, first, n):
        rows = [[0, 0, 1, 1], [0, 0, 1, 1], [0, -1, -1, -1], [-1] * 4]
        return {"half": np.array(rows[first : first + n])}


def test_losses_by_part_are_kept(tmp_path):
    sums = EvaluationSums(Halves())
    for first in (0, 2):
        weight = [[4, 4], [1, 0]][first // 2]
        tokens = np.arange(8, dtype=np.float32).reshape(2, 4) + 8 * first / 2
        sums.add(batch([1.0, 1.0], weight) | {"nll_BxL": tokens})
    sums.windows(1, "text").write(tmp_path)
    parts = WindowLosses.read(tmp_path).parts["half"]
    assert parts.names == ("first", "second")
    np.testing.assert_array_equal(parts.nll_WxP, [[1, 5], [9, 13], [8, 0]])
    np.testing.assert_array_equal(parts.weight_WxP, [[2, 2], [2, 2], [1, 0]])


def test_parts_of_another_shape_are_damage(tmp_path):
    parts = {"half": LossParts(("first", "second"), np.zeros((2, 2)), np.zeros((2, 2)))}
    WindowLosses(np.zeros(3), np.zeros(3), 1, "", parts).write(tmp_path)
    with pytest.raises(UserError, match="its arrays do not match"):
        WindowLosses.read(tmp_path)
