"""Windows of a stream: those of the stored text, from any place on."""

import itertools
import json

import numpy as np
import pytest

from psann_jax.data import stream_windows
from psann_jax.data.encoding import encode_shard
from psann_jax.data.records import MarkedText
from psann_jax.data.stream_sources import StreamPart
from psann_jax.data.stream_windows import PartReader, Place, StreamWindows, WindowFormat
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.data.windows import PackedWindows
from psann_jax.utils.errors import DataError, UserError
from tests.support.elements import assert_elements_equal

TOKENIZER = byte_tokenizer()
LENGTH = 16


def part(name, texts):
    return StreamPart(name, name, lambda: iter(texts))


def documents(n, seed):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdef"), size=rng.integers(1, 40))) for _ in range(n)]


PARTS = [part(f"part {i}", documents(n, i)) for i, n in enumerate((7, 1, 12, 0, 5))]


def windows(parts=PARTS, reader=0, n_readers=1, seed="3", **form):
    values = {"tokenizer": TOKENIZER, "length": LENGTH, "document_mask": True, "has_scored": False}
    return StreamWindows(PartReader(parts, seed, reader, n_readers), WindowFormat(**values | form))


def take(iterator, n):
    return list(itertools.islice(iterator, n))


@pytest.fixture(params=[1, 30, 1 << 19])
def batch_characters(request, monkeypatch):
    monkeypatch.setattr(stream_windows, "_BATCH_CHARACTERS", request.param)


@pytest.mark.parametrize("document_mask", [True, False])
def test_windows_are_those_of_the_stored_text(batch_characters, document_mask):
    reader = PartReader(PARTS, "3", 0, 1)
    texts = [text for passes in range(4) for p in reader.order(passes) for text in p.documents()]
    shard = encode_shard(texts, TOKENIZER)
    stored = PackedWindows(shard, LENGTH, TOKENIZER.pad_id, document_mask=document_mask)
    found = take(windows(document_mask=document_mask), len(stored))
    assert_elements_equal(found, [stored[i] for i in range(len(stored))])


def test_every_state_continues_exactly(batch_characters):
    iterator = iter(windows())
    states, elements = [], []
    for _ in range(120):
        states.append(json.loads(json.dumps(iterator.get_state())))
        elements.append(next(iterator))
    assert states[0] == {"passes": 0, "part": 0, "document": 0, "token": 0}
    assert states[-1]["passes"] >= 2
    for i in range(0, 110, 9):
        again = iter(windows())
        again.set_state(states[i])
        assert again.get_state() == states[i]
        assert_elements_equal(take(again, 10), elements[i : i + 10])
        assert again.get_state() == states[i + 10]


def test_an_iterator_can_go_back():
    iterator = iter(windows())
    state = iterator.get_state()
    first = take(iterator, 20)
    iterator.set_state(state)
    assert_elements_equal(take(iterator, 20), first)


def test_targets_are_marked():
    texts = [MarkedText([("what? ", False), ("that", True)]), "plain"]
    found = take(windows([part("a", texts)], has_scored=True), 8)
    shard = encode_shard(texts * 8, TOKENIZER)
    stored = PackedWindows(shard, LENGTH, TOKENIZER.pad_id)
    assert_elements_equal(found, [stored[i] for i in range(8)])
    assert 0 < sum(int(window["scored"].sum()) for window in found) < 8 * LENGTH


def test_each_pass_has_every_part_once_in_another_order():
    reader = PartReader(PARTS, "3", 0, 1)
    orders = [[p.name for p in reader.order(passes)] for passes in range(10)]
    assert all(sorted(order) == [p.name for p in PARTS] for order in orders)
    assert len({tuple(order) for order in orders}) > 5
    other = PartReader(PARTS, "4", 0, 1)
    assert [[p.name for p in other.order(passes)] for passes in range(10)] != orders


@pytest.mark.parametrize("n_readers", [2, 3, 5])
def test_readers_read_different_parts(n_readers):
    for passes in range(5):
        orders = [PartReader(PARTS, "3", i, n_readers).order(passes) for i in range(n_readers)]
        names = [p.name for order in orders for p in order]
        assert sorted(names) == [p.name for p in PARTS]
        assert max(map(len, orders)) - min(map(len, orders)) <= 1


def test_a_reader_whose_parts_are_empty_goes_on_to_the_next_pass():
    parts = [part("empty", []), part("full", documents(20, 0))]
    for reader in (0, 1):
        assert len(take(windows(parts, reader, 2), 20)) == 20


def test_text_without_documents_is_an_error():
    with pytest.raises(DataError, match=r"^empty: has no text, only blank lines, and so have all other parts"):
        next(iter(windows([part("empty", []), part("other", [])])))


def test_errors_can_be_survived_by_saving():
    def broken():
        yield "text"
        raise UserError("x: cannot be read")

    with pytest.raises(DataError, match=r"^x: cannot be read"):
        take(windows([StreamPart("x", "x", broken)]), 100)


@pytest.mark.parametrize("end", [["short"], []])
@pytest.mark.parametrize("left", [3, 5])
def test_a_text_that_has_changed_is_an_error(left, end):
    texts = ["a" * 50] * 6
    iterator = iter(windows([part("a", texts)]))
    while iterator.get_state()["document"] < 5 or iterator.get_state()["token"] < 10:
        next(iterator)
    again = iter(windows([part("a", [*texts[:left], *end])]))
    again.set_state(iterator.get_state())
    with pytest.raises(DataError, match=r"^a: has changed since the run read it; restore it, or start anew"):
        next(again)


def test_the_place_of_a_token_is_named():
    iterator = iter(windows([part("a", ["b" * 30])]))
    take(iterator, 3)
    assert iterator.get_state() == {"passes": 1, "part": 0, "document": 0, "token": 16}  # 48 = 32 + 16
    assert Place(**iterator.get_state()) == Place(1, 0, 0, 16)
