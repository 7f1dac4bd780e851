"""The split of documents by hash."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.data.split import TRAIN, VALID, Split, document_hash, find_split
from psann_jax.utils.errors import UserError

TEXTS = [f"document {i}" for i in range(2000)]


def test_the_hash_is_that_of_blake2b():
    key = hashlib.sha256(b"split 7").digest()
    expected = hashlib.blake2b("é".encode(), digest_size=8, key=key).digest()
    assert document_hash("é", 7) == int.from_bytes(expected, "big")
    # A change of these values would move documents between training and validation text of existing runs.
    assert document_hash("", 0) == 15412177981115787751
    assert document_hash("text", 1337) == 18181381990746758163


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_about_a_fraction_of_the_documents_is_validation_text(fraction):
    split = find_split(TEXTS, fraction, seed=3)
    n = sum(map(split.is_valid, TEXTS))
    assert abs(n - fraction * 2000) < 5 * (2000 * fraction * (1 - fraction)) ** 0.5
    assert split == Split(3, int(fraction * 2**64))


def test_another_seed_gives_another_split():
    splits = [find_split(TEXTS, 0.1, seed) for seed in (0, 1)]
    both = sum(all(split.is_valid(text) for split in splits) for text in TEXTS)
    assert both < 50  # 20 are expected


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.text(max_size=3), min_size=1, max_size=12),
    st.floats(1e-6, 1 - 1e-6),
    st.integers(0, 2**70),
    st.randoms(use_true_random=False),
)
def test_both_sides_have_text(texts, fraction, seed, random):
    if len(set(texts)) == 1:
        with pytest.raises(UserError, match=r"^data.valid_sources: is empty, but one document cannot be split"):
            find_split(texts, fraction, seed)
        return
    split = find_split(texts, fraction, seed)
    valid = {text for text in texts if split.is_valid(text)}
    hashes = {text: document_hash(text, seed) for text in texts}
    expected = {text for text in texts if hashes[text] < fraction * 2**64}
    if not expected:
        expected = {min(hashes, key=hashes.get)}
    elif expected == set(texts):
        expected -= {max(hashes, key=hashes.get)}
    assert valid == expected
    shuffled = random.sample(texts, len(texts))
    assert {text for text in texts if find_split(shuffled, fraction, seed).is_valid(text)} == valid


def test_no_more_documents_are_read_than_needed():
    texts = iter(TEXTS)
    split = find_split(texts, 0.1, seed=0)
    read = TEXTS[: TEXTS.index(next(texts))]
    sides = [split.is_valid(text) for text in read]
    assert sides[-1] not in sides[:-1]


def test_fixed_sides():
    assert not TRAIN.is_valid("a")
    assert VALID.is_valid("a")
