"""Text that is streamed: batches from a state, tokenizers, several readers, bounded memory."""

import collections
import dataclasses
import functools
import gzip
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psann_jax.config import ConfigError, DataConfig, TokenizerConfig
from psann_jax.data import remote_files, stream_windows, streamed_text
from psann_jax.data.batches import BatchShard
from psann_jax.data.loader import load_text
from psann_jax.data.stream_sources import StreamPart, StreamSource
from psann_jax.data.streamed_text import StreamedText, load_valid_text, open_text, open_tokenizer
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.utils.errors import DataError, UserError
from tests.data.test_loader import random_lines
from tests.support.elements import assert_elements_equal
from tests.support.web import web_server

LENGTH = 16
BYTES = TokenizerConfig(kind="bytes")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(stream_windows, "_BATCH_CHARACTERS", 200)


def config(folder, n_files=3, **changes):
    """Returns the settings of a stream of files in a folder, which are written if they are missing."""
    names = [folder / f"{i}.txt" for i in range(n_files)]
    for i, path in enumerate((*names, folder / "valid.txt")):
        if not path.exists():
            path.write_text("\n".join(random_lines(40, i)))
    values = {
        "sources": tuple(map(str, names)),
        "valid_sources": (str(folder / "valid.txt"),),
        "document": "line",
        "stream": True,
        "shuffle_buffer": 8,
        "tokenizer": BYTES,
        "max_length": LENGTH,
        "cache_dir": str(folder / "cache"),
    }
    return DataConfig(**values | changes)


def open_stream_text(folder, **changes):
    settings = config(folder, **changes)
    settings.check("data")
    return open_text(settings, progress=False)


def take(text, n, **options):
    batches = text.train_batches(**{"seed": 1, "batch_size": 4} | options)
    return [next(batches) for _ in range(n)]


@pytest.mark.parametrize(("shuffle_buffer", "batch_size"), [(1, 4), (2, 6), (7, 4), (64, 1), (64, 6)])
@pytest.mark.parametrize("weights", [(), (3.0, 1.0, 0.5)])
def test_batches_continue_exactly_from_a_state(tmp_path, shuffle_buffer, batch_size, weights):
    changes = {"shuffle_buffer": shuffle_buffer, "weights": weights}
    text = open_stream_text(tmp_path, **changes)
    batches = text.train_batches(seed=1, batch_size=batch_size)
    states, found = [json.dumps(text.state())], []
    for _ in range(24):
        found.append(next(batches))
        states.append(json.dumps(text.state()))
    for step in (0, 1, 5, 16):
        again = open_stream_text(tmp_path, **changes)
        again.restore([json.loads(states[step])], 0)
        assert json.dumps(again.state()) == states[step]
        assert_elements_equal(take(again, 8, batch_size=batch_size, start_step=step), found[step : step + 8])
        assert json.dumps(again.state()) == states[step + 8]


def test_every_kind_of_source_continues_exactly(tmp_path):
    (tmp_path / "set").mkdir()
    records = ["".join(json.dumps({"text": line}) + "\n" for line in random_lines(30, seed)) for seed in range(5)]
    for i in (0, 1):
        (tmp_path / "set" / f"train-{i}.jsonl").write_text(records[i])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(records[2].encode()))
    pq.write_table(pa.table({"text": random_lines(30, 3)}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text(records[4])
    with web_server(tmp_path) as web:
        files = (str(tmp_path / "*.jsonl.gz"), str(tmp_path / "b.parquet"), f"{web.url}/c.jsonl")
        changes = {"sources": (f"hf:{tmp_path / 'set'}", *files)}
        text = open_stream_text(tmp_path, **changes)
        assert len(text._sources[0].parts) == 2
        batches = text.train_batches(seed=1, batch_size=4)
        states, found = [], []
        for _ in range(60):
            states.append(text.state())
            found.append(next(batches))
        for step in (7, 29, 50):
            again = open_stream_text(tmp_path, **changes)
            again.restore([states[step]], 0)
            assert_elements_equal(take(again, 8, start_step=step), found[step : step + 8])


def test_batches_do_not_depend_on_the_threads_that_read_ahead(tmp_path):
    expected = take(open_stream_text(tmp_path), 30)
    assert_elements_equal(take(open_stream_text(tmp_path, num_workers=7), 30), expected)


def rows(batches):
    return [tuple(row) for batch in batches for row in batch["tokens"].tolist()]


def test_another_seed_is_another_order(tmp_path):
    a, b = (rows(take(open_stream_text(tmp_path), 20, seed=seed)) for seed in (1, 2))
    assert a != b


def spread(found):
    """Returns the mean distance of successive rows in the text."""
    return np.mean(np.abs(np.diff(found)))


def test_windows_are_shuffled_within_the_buffer(tmp_path):
    in_order = rows(take(open_stream_text(tmp_path, shuffle_buffer=1), 16))
    shuffled = rows(take(open_stream_text(tmp_path, shuffle_buffer=32), 16))
    places = {row: i for i, row in enumerate(in_order)}
    for first in (0, 32):
        assert {places[row] for row in shuffled[first : first + 32]} == set(range(first, first + 32))
        assert spread([places[row] for row in shuffled[first : first + 32]]) > 5


def documents_of(tokens, tokenizer):
    """Returns how often each complete document is among tokens in the order of the text."""
    found = collections.Counter()
    starts = [i for i, token in enumerate(tokens) if token == tokenizer.bos_id]
    for a, b in itertools.pairwise(starts):
        found[tokenizer.decode(list(tokens[a + 1 : b - 1]))] += 1
    return found


def test_an_epoch_has_the_documents_of_the_stored_text_once(tmp_path):
    settings = config(tmp_path, shuffle_buffer=1)
    stored = load_text(config(tmp_path, stream=False, shuffle_buffer=1024), progress=False)
    text = open_text(settings, progress=False)
    n = stored.n_train_tokens
    found = np.concatenate([row[:-1] for row in rows(take(text, -(-n // LENGTH) + 1, batch_size=1))])
    tokens = [*found[:n], text.tokenizer.bos_id]
    lines = collections.Counter(line for i in range(3) for line in random_lines(40, i))
    assert documents_of(tokens, text.tokenizer) == lines
    assert n == sum((len(line) + 2) * k for line, k in lines.items())
    assert text.valid_windows[0].keys() == stored.valid_windows[0].keys()
    assert text.n_valid_tokens == stored.n_valid_tokens
    assert text.evaluated_bytes() == stored.evaluated_bytes()
    for i in range(len(stored.valid_windows)):
        assert_elements_equal([text.valid_windows[i]], [stored.valid_windows[i]])


def reader_shards(n):
    return [BatchShard((i,), n, tuple((k,) for k in range(n))) for i in range(n)]


def test_readers_read_different_files(tmp_path):
    names = [set(random_lines(40, i)) for i in range(4)]
    for shard in reader_shards(2):
        text = open_stream_text(tmp_path, n_files=4, shuffle_buffer=1)
        n = 2 * 40 * 20 // LENGTH
        found = np.concatenate([row[:-1] for row in rows(take(text, n, batch_size=2, shard=shard))])
        lines = documents_of(found[: 40 * 40], text.tokenizer)
        assert sum(bool(lines.keys() & name) for name in names) <= 2
        assert text.state()["reader"] == shard.parts[0]


def test_processes_with_the_same_rows_read_the_same(tmp_path):
    readers = ((0,), (1,))
    a, b = (take(open_stream_text(tmp_path), 9, shard=BatchShard((1,), 2, readers)) for _ in range(2))
    assert_elements_equal(a, b)
    with pytest.raises(UserError, match=r"^data.stream: some rows of a batch belong to several processes"):
        take(open_stream_text(tmp_path), 1, shard=BatchShard((0, 1), 3, ((0, 1), (1, 2))))


def test_a_reader_continues_in_another_process(tmp_path):
    states, expected = [], []
    for shard in reader_shards(2):
        text = open_stream_text(tmp_path)
        take(text, 3, shard=shard)
        states.append(text.state())
        again = open_stream_text(tmp_path)
        expected.append(take(again, 8, shard=shard)[3:])
    for shard, batches in zip(reader_shards(2), expected, strict=True):
        text = open_stream_text(tmp_path)
        text.restore(states[::-1], shard.parts[0])
        assert_elements_equal(take(text, 5, shard=shard, start_step=3), batches)


def test_another_number_of_readers_is_refused(tmp_path):
    text = open_stream_text(tmp_path)
    take(text, 3, shard=reader_shards(2)[1])
    again = open_stream_text(tmp_path)
    again.restore([None, text.state()], 1)
    with pytest.raises(UserError, match=r"^data.stream: the run was saved by 2 processes that read different rows"):
        take(again, 1, start_step=3)


def test_too_few_files_for_the_readers(tmp_path):
    expected = r"^data.sources: .*2.txt: 3 parts are too few for 4 processes; name more files$"
    with pytest.raises(ConfigError, match=expected):
        open_stream_text(tmp_path).check_shard(reader_shards(4)[0])  # as training does before it compiles
    with pytest.raises(ConfigError, match=expected):
        take(open_stream_text(tmp_path), 1, shard=reader_shards(4)[0])
    with pytest.raises(ConfigError, match=r"0.txt: 1 parts are too few for 2 processes"):
        take(open_stream_text(tmp_path, weights=(1.0, 1.0, 1.0)), 1, shard=reader_shards(2)[0])


def test_sources_are_drawn_by_weight(tmp_path):
    for i, letter in enumerate("xyz"):
        (tmp_path / f"{i}.txt").write_text("\n".join([letter * 30] * 20))
    text = open_stream_text(tmp_path, weights=(4.0, 2.0, 1.0), shuffle_buffer=7)
    found = collections.Counter(max("xyz", key=text.tokenizer.decode(list(row)).count) for row in rows(take(text, 35)))
    assert found == {"x": 80, "y": 40, "z": 20}
    twice = (str(tmp_path / "0.txt"), str(tmp_path / "1.txt"), str(tmp_path / "0.txt"))
    text = open_stream_text(tmp_path, sources=twice, weights=(1.0, 2.0, 1.0), shuffle_buffer=4)
    found = collections.Counter(max("xy", key=text.tokenizer.decode(list(row)).count) for row in rows(take(text, 20)))
    assert found == {"x": 40, "y": 40}


def test_a_state_is_needed_in_the_middle(tmp_path):
    with pytest.raises(ValueError, match="only from a state"):
        take(open_stream_text(tmp_path), 1, start_step=3)


def fake_source(name, documents):
    return StreamSource(name, (StreamPart(name, name, documents),), frozenset(), name)


def test_text_is_read_no_further_than_the_buffers_hold():
    read = 0

    def endless():
        nonlocal read
        for i in itertools.count():
            read += 1
            yield f"{i:020d}"

    settings = DataConfig(
        sources=("x",), valid_sources=("y",), stream=True, shuffle_buffer=50, max_length=22, num_workers=1
    )
    valid = fake_source("y", lambda: iter(["some text"] * 9))
    text = StreamedText(settings, byte_tokenizer(), [fake_source("x", endless)], [valid])
    n_batches = 200
    take(text, n_batches, batch_size=5)
    # A window is a document: two buffers of windows, the batches that are ready, and one group that is encoded.
    assert n_batches * 5 <= read <= n_batches * 5 + 2 * 50 + 4 * 5 + 2 * 10 + 3


def test_the_tokenizer_is_trained_on_a_bounded_sample(tmp_path, monkeypatch):
    read = collections.Counter()

    def endless(name):
        for i in itertools.count():
            read[name] += 1
            yield f"{name} {i:07d}"

    monkeypatch.setattr(streamed_text, "SAMPLE_PIECE_BYTES", 100)
    sources = [fake_source(name, functools.partial(endless, name)) for name in ("xx", "yy")]
    sample = list(streamed_text._sample(sources, 1, 1000))
    assert sum(len(text.encode()) for text in sample) == 1000
    assert sum(read.values()) <= 102
    whole = [f"{i:09d}" for i in range(500)]
    short = [fake_source(str(i), lambda: iter(["short"])) for i in range(9)]
    unequal = [fake_source("long", lambda: iter(whole)), *short]
    sample = list(streamed_text._sample(unequal, 1, 3000))
    assert sum(len(text.encode()) for text in sample) == 3000
    assert [text for text in sample if text != "short"][:300] == whole[:300]
    assert sorted(streamed_text._sample(unequal, 1, 10_000)) == sorted([*whole, *["short"] * 9])
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("\n".join(f"word{k % 50} text {i}" for k in range(500)))
    settings = config(tmp_path, tokenizer=TokenizerConfig(vocab_size=300, sample_bytes=2000), shuffle_buffer=4)
    text = open_text(settings, progress=False)
    assert text.tokenizer.vocab_size <= 300
    assert text.fingerprint == open_text(settings, progress=False).fingerprint
    assert "a stream, parts: 3; 4 windows of 16 shuffled at a time" in text.describe()
    for data in (settings, dataclasses.replace(settings, stream=False, shuffle_buffer=1024)):
        alone = open_tokenizer(data, progress=False)
        assert alone.fingerprint == open_text(data, progress=False).tokenizer.fingerprint


def test_the_fingerprint_follows_names_sizes_settings_and_the_validation_text(tmp_path):
    def fingerprint(**changes):
        return open_stream_text(tmp_path, **changes).fingerprint

    first = fingerprint()
    assert fingerprint() == fingerprint(shuffle_buffer=9) == first
    assert fingerprint(document="paragraph") != first
    assert fingerprint(n_files=2) != first
    assert fingerprint(tokenizer=TokenizerConfig(vocab_size=300)) != first
    content = (tmp_path / "0.txt").read_text()
    (tmp_path / "0.txt").write_text(content + "more\n")
    assert fingerprint() != first
    (tmp_path / "0.txt").write_text(content[::-1])  # of the same size: the content is not read
    assert fingerprint() == first
    valid = (tmp_path / "valid.txt").read_text()
    (tmp_path / "valid.txt").write_text(valid[::-1])
    assert fingerprint() != first
    assert first.endswith(load_valid_text(config(tmp_path), byte_tokenizer()).fingerprint) is False


def test_the_validation_text_alone(tmp_path):
    text = open_stream_text(tmp_path)
    alone = load_valid_text(config(tmp_path), text.tokenizer)
    assert text.fingerprint.endswith(f"-{alone.fingerprint}")
    assert_elements_equal(list(alone.valid_batches(batch_size=3)), list(text.valid_batches(batch_size=3)))
    assert text.target_parts().names["source"] == (str(tmp_path / "valid.txt"),)
    (tmp_path / "valid.txt").write_text("\n\n")
    with pytest.raises(UserError, match=r"^data.valid_sources: .*valid.txt has no text, only blank lines$"):
        open_stream_text(tmp_path)


def test_prompts_are_no_targets(tmp_path):
    records = "\n".join(json.dumps({"q": f"question {i}?", "a": f"answer {i}"}) for i in range(50))
    (tmp_path / "a.jsonl").write_text(records)
    changes = {"prompt_field": "q", "completion_field": "a", "document": "auto"}
    names = (str(tmp_path / "a.jsonl"),)
    text = open_stream_text(tmp_path, sources=names, valid_sources=names, **changes)
    assert text.has_scored
    batch = take(text, 1)[0]
    assert batch.keys() == {"tokens", "segment_ids", "positions", "scored"}
    assert 0 < batch["scored"].mean() < 0.8
    assert "targets     field a of records" in text.describe()


def test_settings_that_do_nothing_are_refused(tmp_path):
    for changes, expected in [
        ({"stream": False}, "data.shuffle_buffer: has no effect without data.stream"),
        ({"valid_sources": ()}, "data.valid_sources: is empty, but a stream is not split; name the validation text"),
        ({"valid_fraction": 0.5}, "data.valid_fraction: has no effect with data.valid_sources"),
        ({"pack": False}, "data.pack: cannot be False with data.stream"),
        ({"shuffle_buffer": 0}, "data.shuffle_buffer: is 0, must be at least 1"),
        ({"text_field": "body"}, "data.text_field: has no effect on sources without records"),
        ({"tokenizer": TokenizerConfig(sample_bytes=0)}, "data.tokenizer.sample_bytes: is 0, which stands for"),
        ({"document": "auto"}, "data.document: is auto, which would have to read"),
    ]:
        with pytest.raises(ConfigError) as e:
            open_stream_text(tmp_path, **changes)
        assert str(e.value).startswith(expected)
    with pytest.raises(ConfigError, match=r"^data.stream: cannot be True here: only training reads a stream"):
        load_text(config(tmp_path), progress=False)
    with pytest.raises(ConfigError, match=r"^data.stream: cannot be True with a tuning stage"):
        config(tmp_path).hold_out(0.1)


def test_a_network_that_fails_is_a_data_error(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_files, "WAITS_S", (0,))
    settings = config(tmp_path)
    with web_server(tmp_path) as web:
        names = tuple(f"{web.url}/{i}.txt" for i in range(3))
        text = open_text(DataConfig(**{**vars(settings), "sources": names}), progress=False)
        expected = take(text, 5)
        state = text.state()
        text = open_text(DataConfig(**{**vars(settings), "sources": names}), progress=False)
        web.failures = [503] * 2
        with pytest.raises(DataError, match=r"^http://.*.txt: cannot be read: HTTP Error 503: .* \(2 attempts\)"):
            take(text, 5)
        text = open_text(DataConfig(**{**vars(settings), "sources": names}), progress=False)
        assert_elements_equal(take(text, 5), expected)
        assert text.state() == state


def test_warnings(tmp_path):
    text = open_stream_text(tmp_path)
    assert text.warnings(8) == ()
    assert text.warnings(9) == ("data.shuffle_buffer=8 is less than an update of 9 windows",)
    (tmp_path / "valid.txt").write_text("short")
    (line,) = open_stream_text(tmp_path).warnings(8)
    assert line == "the validation text has only 7 tokens, so its loss says little"
