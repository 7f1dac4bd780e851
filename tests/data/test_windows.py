"""Windows against their definition, token by token."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psann_jax.data.shards import Shard
from psann_jax.data.windows import DocumentRows, PackedWindows, is_target, padding_row

PAD = 99_999
lengths_of_documents = st.lists(st.one_of(st.integers(2, 6), st.integers(2, 60)), min_size=1, max_size=20)


def shard_of(lengths: list[int]) -> Shard:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Shard(np.arange(1000, 1000 + offsets[-1]).astype(np.uint16), offsets, 0)


def reference(lengths: list[int], start: int, stop: int, size: int, mask: bool = True) -> dict[str, list[int]]:
    """Returns the window of the tokens [start, stop) of the stream, built one token at a time."""
    document_of = [d for d, length in enumerate(lengths) for _ in range(length)]
    start_of = [sum(lengths[:d]) for d in range(len(lengths))]
    out = {"tokens": [], "segment_ids": [], "positions": []}
    for t in range(start, start + size):
        real = t < stop
        out["tokens"].append(1000 + t if real else PAD)
        out["segment_ids"].append((document_of[t] - document_of[start] + 1 if mask else 1) if real else 0)
        out["positions"].append((t - max(start, start_of[document_of[t]]) if mask else t - start) if real else 0)
    return out


def assert_equal(element, expected):
    assert list(element) == ["tokens", "segment_ids", "positions"]
    for name, values in expected.items():
        assert element[name].dtype == np.int32
        assert element[name].tolist() == values


@settings(deadline=None, max_examples=200)
@given(lengths_of_documents, st.integers(1, 40), st.booleans(), st.booleans())
@example([5], 4, True, False)
@example([2, 2, 2], 5, True, False)
@example([9], 4, True, True)
@example([2] * 20, 40, False, True)
def test_packed_windows(lengths, length, mask, keep_last):
    windows = PackedWindows(shard_of(lengths), length, PAD, document_mask=mask, keep_last=keep_last)
    n = sum(lengths)
    assert len(windows) == (-(-(n - 1) // length) if keep_last else (n - 1) // length)
    for i in range(len(windows)):
        start, stop = i * length, min(i * length + length + 1, n)
        assert_equal(windows[i], reference(lengths, start, stop, length + 1, mask))
    # The targets of all windows are the stream without its first token, in order and without gaps.
    targets = [t for i in range(len(windows)) for t in windows[i]["tokens"][1:].tolist() if t != PAD]
    assert targets == list(range(1001, 1001 + (n - 1 if keep_last else len(windows) * length)))


@settings(deadline=None, max_examples=200)
@given(lengths_of_documents, st.integers(1, 40))
@example([5, 9, 2], 4)
def test_document_rows(lengths, length):
    rows = DocumentRows(shard_of(lengths), length, PAD)
    expected = []
    for d, n in enumerate(lengths):
        begin = sum(lengths[:d])
        for start in range(begin, begin + n - 1, length):
            stop = min(start + length + 1, begin + n)
            expected.append(reference([begin + n], start, stop, length + 1))
            expected[-1]["positions"] = [t if t < stop - start else 0 for t in range(length + 1)]
    assert len(rows) == len(expected)
    for i, row in enumerate(expected):
        assert_equal(rows[i], row)
    # Every token but the first of each document is a target exactly once.
    targets = [t for i in range(len(rows)) for t in rows[i]["tokens"][1:].tolist() if t != PAD]
    starts = {1000 + sum(lengths[:d]) for d in range(len(lengths))}
    assert targets == [t for t in range(1000, 1000 + sum(lengths)) if t not in starts]


@pytest.mark.parametrize("windows", [PackedWindows(shard_of([9]), 4, PAD), DocumentRows(shard_of([9]), 4, PAD)])
def test_indices_out_of_range_raise(windows):
    for i in (-1, len(windows)):
        with pytest.raises(IndexError):
            windows[i]


@pytest.mark.parametrize("kind", [PackedWindows, DocumentRows])
def test_an_empty_shard_has_no_windows(kind):
    assert len(kind(shard_of([]), 4, PAD)) == 0


def test_padding_row():
    plain, strided = (PackedWindows(shard_of([9]), 3, PAD, stride=stride)[0] for stride in (3, 2))
    padding = {"tokens": [PAD] * 4, "segment_ids": [0] * 4, "positions": [0] * 4}
    assert_equal(padding_row(plain, PAD), padding)
    row = padding_row(strided, PAD)
    assert not is_target(row).any()
    assert row.keys() == strided.keys()


@settings(deadline=None, max_examples=200)
@given(lengths_of_documents, st.integers(1, 40), st.integers(1, 40), st.booleans(), st.booleans())
@example([12, 3], 8, 3, True, True)
@example([4], 8, 3, True, False)
def test_with_a_stride_each_token_is_a_target_once_and_sees_enough_before_it(lengths, length, stride, mask, pack):
    stride = min(stride, length)
    shard = shard_of(lengths)
    packed = pack or not mask
    if packed:
        windows = PackedWindows(shard, length, PAD, document_mask=mask, keep_last=True, stride=stride)
    else:
        windows = DocumentRows(shard, length, PAD, stride=stride)
    document_starts = shard.offsets[:-1] if mask else shard.offsets[:1]
    found = {}
    for i in range(len(windows)):
        window = windows[i]
        assert windows.start(i) == window["tokens"][0] - 1000
        for j in np.flatnonzero(is_target(window)) + 1:
            token = int(window["tokens"][j]) - 1000
            assert token not in found
            found[token] = int(window["positions"][j])
    n = sum(lengths)
    assert sorted(found) == sorted(set(range(n)) - set(document_starts.tolist()))
    for token, seen in found.items():
        before = token - int(document_starts[np.searchsorted(document_starts, token, "right") - 1])
        assert min(before, length - stride) <= seen <= min(before, length)
    for max_tokens in (0, 1, length, length + stride, n, 3 * n):
        n_within = windows.n_within(max_tokens)
        first_rows = [window for i in range(min(n_within, len(windows))) if (window := windows[i])]
        assert sum(is_target(window).sum() for window in first_rows) <= max_tokens


def test_a_stride_by_hand():
    windows = PackedWindows(shard_of([12]), 6, PAD, keep_last=True, stride=4)
    assert len(windows) == 3
    for i, (first, scored) in enumerate(
        [(1000, [0, 1, 1, 1, 1, 1, 1]), (1004, [0] * 3 + [1] * 4), (1008, [0] * 3 + [1] * 4)]
    ):
        assert windows[i]["tokens"][0] == first
        assert windows[i]["scored"].tolist() == scored
    # 11 targets: 6 in the first window, 4 in the second, and the last one, which sees three tokens.
    assert [int(is_target(windows[i]).sum()) for i in range(3)] == [6, 4, 1]
    assert windows[2]["tokens"].tolist() == [1008, 1009, 1010, 1011, PAD, PAD, PAD]
    assert [windows.end(n) for n in range(4)] == [0, 7, 11, 12]
    assert [windows.n_within(n) for n in (5, 6, 9, 10, 14)] == [0, 1, 1, 2, 3]
