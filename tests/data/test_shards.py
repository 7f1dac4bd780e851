"""Several shard files as one array, and damage that is found when they are read."""

import contextlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.data.shard_file import Documents, ShardFile, read_header, write_shard_file
from psann_jax.data.shards import Shard, join_files
from psann_jax.data.windows import DocumentRows, PackedWindows
from psann_jax.utils.errors import DataError, UserError
from tests.support.damage import flip_bit


def write_files(folder, lengths: list[list[int]], wide: bool = False) -> tuple[list[ShardFile], Shard]:
    """Writes documents of these lengths into one file for each list; returns the files and all training tokens."""
    rng = np.random.default_rng(0)
    tokens, offsets, files = [np.zeros(0, np.int64)], [0], []
    for i, sizes in enumerate(lengths):
        train, valid = Documents(wide), Documents(wide)
        for n in sizes:
            ids = rng.integers(0, 70_000 if wide else 65_536, n)
            train.add(ids.tolist(), 3 * n, file=i)
            valid.add([1, i, 2], 1, file=i)
            tokens.append(ids)
            offsets.append(offsets[-1] + n)
        path = folder / f"{i}.shard"
        files.append(ShardFile(path, write_shard_file(path, 0, True, train, valid)))
    return files, Shard(np.concatenate(tokens), np.array(offsets), 3 * offsets[-1])


LENGTHS = st.lists(st.lists(st.integers(2, 30), max_size=6), min_size=1, max_size=5).filter(any)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.booleans(), st.integers(2, 20), st.data())
def test_files_are_read_like_one_array(tmp_path_factory, lengths, wide, length, data):
    files, plain = write_files(tmp_path_factory.mktemp("files"), lengths, wide)
    joined = join_files(files, "train")
    assert joined.tokens_N.dtype == (np.uint32 if wide else np.uint16)
    assert (joined.n_tokens, joined.n_documents, joined.text_bytes) == (
        plain.n_tokens, plain.n_documents, plain.text_bytes,
    )  # fmt: skip
    np.testing.assert_array_equal(joined.tokens_N, plain.tokens_N)
    np.testing.assert_array_equal(joined.offsets, plain.offsets)
    first, last = sorted(data.draw(st.integers(0, plain.n_documents)) for _ in range(2))
    for a, b in ((joined, plain), (joined.documents(first, last), plain.documents(first, last))):
        np.testing.assert_array_equal(a.tokens_N, b.tokens_N)
        np.testing.assert_array_equal(a.offsets, b.offsets)
        for position in range(b.n_tokens + 1):
            for side in ("left", "right"):
                assert np.searchsorted(a.offsets, position, side) == np.searchsorted(b.offsets, position, side)
        start, stop = sorted(data.draw(st.integers(-2, b.n_tokens + 2)) for _ in range(2))
        np.testing.assert_array_equal(a.tokens_N[start:stop], b.tokens_N[start:stop])
        np.testing.assert_array_equal(a.offsets[-1], b.offsets[-1])
        for kind in (PackedWindows, DocumentRows):
            mine, expected = kind(a, length, 0), kind(b, length, 0)
            assert len(mine) == len(expected)
            for i in range(len(expected)):
                for name, array in expected[i].items():
                    np.testing.assert_array_equal(mine[i][name], array)


def test_a_part_of_a_part(tmp_path):
    files, plain = write_files(tmp_path, [[3, 4], [5, 6, 7], [8]])
    part = join_files(files, "train").documents(1, 5).documents(1, 3)
    np.testing.assert_array_equal(part.tokens_N, plain.tokens_N[7:18])
    np.testing.assert_array_equal(part.offsets, [0, 5, 11])


def test_files_without_documents_of_a_side(tmp_path):
    files, _ = write_files(tmp_path, [[], []])
    empty = join_files(files, "train")
    assert (empty.n_tokens, empty.n_documents) == (0, 0)
    assert len(np.asarray(empty.tokens_N)) == 0
    np.testing.assert_array_equal(empty.offsets, [0])


def test_no_file_stays_open(tmp_path):
    files, plain = write_files(tmp_path, [[9]] * 40)
    joined = join_files(files, "train")
    with few_more_files(10):
        np.testing.assert_array_equal(joined.tokens_N, plain.tokens_N)


def test_a_file_that_cannot_be_opened_is_kept(tmp_path):
    files, plain = write_files(tmp_path, [[9]])
    joined = join_files(files, "train")
    with few_more_files(0), pytest.raises(DataError, match=r"0.shard: cannot be read: Too many open files$"):
        joined.tokens_N[:]
    np.testing.assert_array_equal(join_files(files, "train").tokens_N, plain.tokens_N)


@contextlib.contextmanager
def few_more_files(n):
    """While the context lasts, this process can open so many files besides those that it has open."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(n)]  # the limit is of numbers, of which some are free
    first = os.open(os.devnull, os.O_RDONLY)
    for number in (*kept, first):
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_damage_is_found_before_tokens_are_used(tmp_path):
    """A block has 32,768 tokens."""
    files, plain = write_files(tmp_path, [[40_000, 40_000], [9]])
    size = files[0].path.stat().st_size
    body = size - files[0].header.n_bytes()
    flip_bit(files[0].path, body + 2 * 50_000)
    joined = join_files(files, "train")
    np.testing.assert_array_equal(joined.tokens_N[:100], plain.tokens_N[:100])
    np.testing.assert_array_equal(joined.tokens_N[70_000:70_100], plain.tokens_N[70_000:70_100])
    np.testing.assert_array_equal(joined.tokens_N[80_000:], plain.tokens_N[80_000:])
    with pytest.raises(UserError, match=r"0.shard: is damaged or missing; start again, which prepares this part") as e:
        joined.tokens_N[49_000:49_100]
    assert "\n" not in str(e.value)
    assert not files[0].path.exists(), "the next start must not use it"


def read_all(files):
    for side in ("train", "valid"):
        shard = join_files(files, side)
        np.asarray(shard.tokens_N)
        np.asarray(shard.offsets)


@pytest.mark.parametrize("where", [0, 0.01, 0.3, 0.6, 0.9, -1])
def test_no_flipped_bit_goes_unnoticed(tmp_path, where):
    files, _ = write_files(tmp_path, [[300, 5, 5]])
    path = files[0].path
    path_size = path.stat().st_size
    flip_bit(path, int(where * path_size) if where >= 0 else path_size - 1)
    with pytest.raises(UserError, match=r"0.shard: is damaged"):
        read_all(files)


@pytest.mark.parametrize("size", [0, 10, 100, 700])
def test_a_file_that_is_cut_off(tmp_path, size):
    files, _ = write_files(tmp_path, [[300]])
    content = files[0].path.read_bytes()
    files[0].path.write_bytes(content[:size])
    assert not files[0].has_size()
    assert read_header(files[0].path) is None
    with pytest.raises(UserError, match=r"0.shard: is damaged"):
        join_files(files, "train").tokens_N[:5]


def test_a_file_that_is_missing(tmp_path):
    files, _ = write_files(tmp_path, [[300]])
    files[0].path.unlink()
    assert not files[0].has_size()
    with pytest.raises(UserError, match=r"0.shard: is damaged or missing"):
        join_files(files, "train").tokens_N[:5]


def test_a_header_can_be_read_alone(tmp_path):
    files, _ = write_files(tmp_path, [[300, 4]])
    header = read_header(files[0].path)
    assert header == files[0].header
    assert (header.train.files, header.valid.files) == ((), ((0, 2),))
    assert (header.train.tokens, header.valid.tokens, header.n_documents) == (304, 6, 4)
