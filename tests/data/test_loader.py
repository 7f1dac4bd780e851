"""Batches of text: the same after every interruption and on any number of processes."""

import collections
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from psann_jax.config import ConfigError, DataConfig, TokenizerConfig
from psann_jax.data import corpus as corpus_module
from psann_jax.data.batches import BatchShard
from psann_jax.data.loader import load_text
from psann_jax.data.windows import PackedWindows
from psann_jax.utils.errors import UserError
from tests.support.damage import flip_bit, replace_content

BYTES = TokenizerConfig(kind="bytes")
LENGTH = 16


def random_lines(n: int, seed: int, alphabet: str = "abcdefghij") -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(alphabet), size=rng.integers(1, 60))) for _ in range(n)]


def load(tmp_path, *files: list[str], **changes):
    files = files or (random_lines(60, 0),)
    for i, texts in enumerate(files):
        (tmp_path / f"{i}.txt").write_text("\n".join(texts))
    config = {
        "sources": tuple(str(tmp_path / f"{i}.txt") for i in range(len(files))),
        "valid_fraction": DataConfig.valid_fraction if "valid_sources" in changes else 0.2,
        "tokenizer": BYTES,
        "max_length": LENGTH,
        "cache_dir": str(tmp_path / "cache"),
        "num_workers": 2,
    }
    return load_text(DataConfig(**config | changes), progress=False)


@pytest.fixture
def data(tmp_path):
    return load(tmp_path)


def take(iterator, n: int) -> list[dict[str, np.ndarray]]:
    batches = [next(iterator) for _ in range(n)]
    iterator.close()
    return batches


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert list(x) == list(y) == ["tokens", "segment_ids", "positions"]
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def token_rows(batches) -> list[bytes]:
    return [row.tobytes() for batch in batches for row in batch["tokens"]]


# --- training batches -----------------------------------------------------------------------------------


def test_resuming_at_any_step_yields_the_same_batches(data):
    n = 3 * data.n_train_windows // 4  # more than two epochs
    whole = take(data.train_batches(seed=7, batch_size=4, start_step=0), n)
    for step in range(n - 2):
        assert_equal(take(data.train_batches(seed=7, batch_size=4, start_step=step), 2), whole[step : step + 2])
    first, second = n // 3, n // 2
    parts = [(0, first), (first, second - first), (second, n - second)]
    resumed = [b for at, k in parts for b in take(data.train_batches(seed=7, batch_size=4, start_step=at), k)]
    assert_equal(resumed, whole)


def test_train_batch_equals_train_batches(data):
    whole = take(data.train_batches(seed=7, batch_size=4, start_step=5), 20)
    assert_equal([data.train_batch(seed=7, batch_size=4, step=step) for step in range(5, 25)], whole)


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_global_batches_are_the_same_on_any_number_of_processes(tmp_path, n, weights):
    data = load(tmp_path, random_lines(60, 0), random_lines(60, 1), weights=weights)
    whole = take(data.train_batches(seed=7, batch_size=8, start_step=3), 12)
    parts = [
        take(data.train_batches(seed=7, batch_size=8, start_step=3, shard=BatchShard((p,), n)), 12) for p in range(n)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)
    assert parts[0][0]["tokens"].shape == (8 // n, LENGTH + 1)


def test_rows_of_a_process_need_not_be_neighbours(data):
    whole = data.train_batch(seed=7, batch_size=8, step=3)
    part = data.train_batch(seed=7, batch_size=8, step=3, shard=BatchShard((0, 3), 4))
    assert_equal([part], [{name: rows[[0, 1, 6, 7]] for name, rows in whole.items()}])


def test_a_process_reads_its_own_rows_only(data, monkeypatch):
    read, get = [], PackedWindows.__getitem__
    monkeypatch.setattr(PackedWindows, "__getitem__", lambda self, i: read.append(i) or get(self, i))
    data.train_batch(seed=7, batch_size=8, step=3, shard=BatchShard((1,), 4))
    assert len(read) == 2


def test_every_epoch_has_each_window_once_in_a_different_order(data):
    n = data.n_train_windows
    rows = token_rows(take(data.train_batches(seed=7, batch_size=1), 3 * n))
    epochs = [rows[i * n : (i + 1) * n] for i in range(3)]
    windows = token_rows([data.train_batch(seed=7, batch_size=n, step=0)])
    assert len(set(windows)) == n
    for epoch in epochs:
        assert sorted(epoch) == sorted(windows)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_cover_the_training_text_and_no_validation_text(tmp_path):
    data = load(tmp_path)
    (tmp_path / "valid.txt").write_text("\n".join(random_lines(9, 5, "XYZ")))
    fixed = load(tmp_path, valid_sources=(str(tmp_path / "valid.txt"),))
    for d in (data, fixed):
        seen = take(d.train_batches(seed=1, batch_size=1), d.n_train_windows)
        n_targets = sum(batch["tokens"].size - 1 for batch in seen)
        assert d.n_train_tokens - LENGTH - 1 <= n_targets < d.n_train_tokens
    assert b"X" not in bytes(int(i) - 4 for b in seen for i in b["tokens"].ravel() if i >= 4)
    held_out = bytes(int(i) - 4 for b in fixed.valid_batches(batch_size=2) for i in b["tokens"].ravel() if i >= 4)
    assert set(held_out) == set(b"XYZ")


def test_different_seeds_give_different_orders(data):
    a, b = (token_rows(take(data.train_batches(seed=seed, batch_size=4), 5)) for seed in (1, 2))
    assert a != b
    assert data.train_batch(seed=2**40, batch_size=2, step=0)["tokens"].shape == (2, LENGTH + 1)


def test_weights_set_the_fraction_of_each_source(tmp_path):
    files = [random_lines(80, 0, "abc"), random_lines(300, 1, "xyz")]
    data = load(tmp_path, *files, weights=(3.0, 1.0))
    batches = [data.train_batch(seed=3, batch_size=100, step=step) for step in range(4)]
    first = [{chr(i - 4) for i in row if i >= 4} <= set("abc") for b in batches for row in b["tokens"].tolist()]
    assert abs(sum(first) - 300) <= 1
    of_first = [row for row, is_first in zip(token_rows(batches), first, strict=True) if is_first]
    n = len(set(of_first))
    assert n < 200  # so the smaller source is repeated, each window equally often
    assert max(collections.Counter(of_first).values()) - min(collections.Counter(of_first).values()) <= 1


def test_without_weights_sources_are_used_in_proportion_to_their_size(tmp_path):
    data = load(tmp_path, random_lines(100, 0, "abc"), random_lines(20, 1, "xyz"))
    assert data.n_train_windows == (data.n_train_tokens - 1) // LENGTH
    rows = take(data.train_batches(seed=3, batch_size=1), data.n_train_windows)
    fraction = np.mean([{chr(i - 4) for i in b["tokens"][0] if i >= 4} <= set("xyz") for b in rows])
    assert 0.05 < fraction < 0.3


def test_one_document_per_row(tmp_path):
    texts = ["a" * n for n in range(1, 50)]
    data = load(tmp_path, texts, pack=False)
    rows = take(data.train_batches(seed=0, batch_size=1), data.n_train_windows)
    n_targets = sum(int((b["segment_ids"][:, 1:] > 0).sum()) for b in rows)
    assert data.n_train_tokens - n_targets == data.n_train_documents  # their bos
    assert all(set(np.unique(b["segment_ids"])) <= {0, 1} for b in rows)


def test_without_document_mask_a_window_is_one_segment(tmp_path):
    data = load(tmp_path, document_mask=False)
    batch = data.train_batch(seed=0, batch_size=4, step=0)
    assert (batch["segment_ids"] == 1).all()
    assert (batch["positions"] == np.arange(LENGTH + 1)).all()


# --- validation batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("pack", [True, False])
def test_validation_batches_cover_the_text_in_order(tmp_path, n, pack):
    data = load(tmp_path, pack=pack)
    parts = [list(data.valid_batches(batch_size=4, shard=BatchShard((p,), n))) for p in range(n)]
    assert len({len(part) for part in parts}) == 1
    tokens, segment_ids = (
        [np.concatenate([b[k] for b in step]) for step in zip(*parts, strict=True)] for k in ("tokens", "segment_ids")
    )
    assert all(t.shape == (4, LENGTH + 1) for t in tokens)
    real = np.concatenate(segment_ids) > 0
    rows = real.any(axis=1)
    assert rows.sum() == data.n_valid_windows
    assert rows[: data.n_valid_windows].all()
    assert len(parts[0]) == -(-data.n_valid_windows // 4)
    targets = np.concatenate(tokens)[:, 1:][real[:, 1:]]
    shard = data._prepared.valid
    np.testing.assert_array_equal(
        targets, shard.tokens_N[1:] if pack else np.delete(shard.tokens_N, shard.offsets[:-1])
    )


@pytest.mark.parametrize(
    ("max_tokens", "windows"), [(1, 1), (LENGTH, 1), (3 * LENGTH + 5, 3), (10**9, None), (0, None)]
)
def test_max_tokens_selects_a_prefix_of_the_validation_text(data, max_tokens, windows):
    batches = list(data.valid_batches(batch_size=2, max_tokens=max_tokens))
    rows = sum(int((b["segment_ids"] > 0).any(axis=1).sum()) for b in batches)
    assert rows == (windows or data.n_valid_windows)
    assert_equal(batches[:1], list(data.valid_batches(batch_size=2))[:1] if rows > 1 else batches[:1])


@pytest.mark.parametrize("mask", [True, False])
def test_bytes_per_predicted_token(tmp_path, mask):
    (tmp_path / "v.txt").write_text("aé\nbcd\n日")
    data = load(tmp_path, valid_sources=(str(tmp_path / "v.txt"),), document_mask=mask)
    # 3, 3 and 3 bytes, so 5 tokens each; without a mask, the bos of the second and third document is predicted.
    assert data.n_valid_tokens == 15
    assert data.bytes_per_token == 9 / (12 if mask else 14)


# --- from settings to data ------------------------------------------------------------------------------


def test_a_second_load_uses_the_cache(tmp_path, monkeypatch):
    settings = {"tokenizer": TokenizerConfig(vocab_size=300), "valid_fraction": 0.1}
    first = load(tmp_path, random_lines(50, 0), **settings)
    monkeypatch.setattr(corpus_module.Corpus, "documents", lambda *args: pytest.fail("read the text again"))
    second = load(tmp_path, random_lines(50, 0), **settings)
    assert second.fingerprint == first.fingerprint
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert second.bytes_per_token == first.bytes_per_token


@pytest.mark.parametrize("damage", [lambda path: replace_content(path, b""), lambda path: flip_bit(path, 300)])
def test_a_damaged_tokenizer_in_the_cache_is_trained_again(tmp_path, capsys, damage):
    settings = {"tokenizer": TokenizerConfig(vocab_size=300), "valid_fraction": 0.1}
    first = load(tmp_path, random_lines(50, 0), **settings)
    (stored,) = (tmp_path / "cache").glob("tokenizer-*/tokenizer.json")
    damage(stored)
    assert load(tmp_path, random_lines(50, 0), **settings).tokenizer.fingerprint == first.tokenizer.fingerprint
    assert "damaged (tokenizer.json: " in capsys.readouterr().err


def test_the_tokenizer_is_not_trained_on_validation_text(tmp_path):
    (tmp_path / "v.txt").write_text("zebra zebra zebra zebra\n" * 50)
    data = load(tmp_path, ["apple pear " * 5] * 20, valid_sources=(str(tmp_path / "v.txt"),),
                tokenizer=TokenizerConfig(vocab_size=400))  # fmt: skip
    assert len(data.tokenizer.encode("apple")) == 1
    assert len(data.tokenizer.encode("zebra")) == 5


def test_the_split_does_not_depend_on_the_tokenizer(tmp_path):
    by_kind = [
        load(tmp_path, tokenizer=tokenizer) for tokenizer in (BYTES, TokenizerConfig(vocab_size=300, min_frequency=1))
    ]
    held_out = [
        [data.tokenizer.decode(shard.tokens_N[a:b]) for a, b in zip(shard.offsets, shard.offsets[1:], strict=False)]
        for data in by_kind
        for shard in [data._prepared.valid]
    ]
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == by_kind[0].n_valid_documents > 5


def test_changed_settings_train_a_new_tokenizer(tmp_path):
    sizes = [load(tmp_path, tokenizer=TokenizerConfig(vocab_size=n)).tokenizer.vocab_size for n in (280, 290)]
    assert sizes == [280, 290]
    assert len(list((tmp_path / "cache").glob("tokenizer-*[!k]"))) == 2


def test_a_prebuilt_tokenizer_is_loaded(tmp_path):
    trained = load(tmp_path, tokenizer=TokenizerConfig(vocab_size=280)).tokenizer
    trained.save(tmp_path / "own.json")
    data = load(tmp_path, tokenizer=TokenizerConfig(path=str(tmp_path / "own.json")))
    assert data.tokenizer.fingerprint == trained.fingerprint


def test_describe_counts_documents_and_tokens(tmp_path):
    data = load(tmp_path, tokenizer=TokenizerConfig(vocab_size=5000))
    lines = data.describe().split("\n")
    assert lines[0].split(maxsplit=1) == ["text", str(tmp_path / "0.txt")]
    assert lines[1].split(maxsplit=1) == ["documents", f"each line of {tmp_path / '0.txt'}"]
    assert (
        f"{data.n_train_documents} documents, {data._prepared.train.text_bytes:,} bytes, {data.n_train_tokens:,} tokens"
        in lines[2]
    )
    assert f"{data.n_train_windows:,} windows of {LENGTH}" in lines[2]
    assert f"{data.n_valid_documents} documents" in lines[3]
    assert data.n_train_documents + data.n_valid_documents == 60
    size = data.tokenizer.vocab_size
    assert f"bpe, vocabulary {size:,} (5,000 requested, but the text yields no more)" in lines[4]


def test_describe_names_sources_and_weights(tmp_path):
    (tmp_path / "v.txt").write_text("a\nb")
    data = load(
        tmp_path, *[random_lines(9, i) for i in range(2)], weights=(2, 0.5), valid_sources=(f"{tmp_path}/v.txt",)
    )
    lines = data.describe().split("\n")
    assert lines[0].endswith(f"{tmp_path}/0.txt (weight 2), {tmp_path}/1.txt (weight 0.5)")
    assert lines[3].endswith(f"({tmp_path}/v.txt)")


@pytest.mark.parametrize(
    ("files", "changes", "expected"),
    [
        (
            (["ab", "cd", "ef", "gh"],),
            {"max_length": 500},
            r"^data.max_length: is 500, but the training text of .*0.txt has (4|8|12) token",
        ),
        (
            ([f"{i}" for i in range(40)], ["b"] * 2),
            {"weights": (1.0, 2.0)},
            r"^data.max_length: is 16, but the training text of .*1.txt has \d+ tokens, fewer than the 17 of one",
        ),
        ((["a", "b"],), {"tokenizer": TokenizerConfig(kind="bytes", eos_token="<e>")}, "^data.tokenizer.eos_token: "),
        (
            (["a", "b"],),
            {"cache_dir": "/dev/null/x"},
            r"^/dev/null/x: cannot be written: Not a directory; .* set data.cache_dir ",
        ),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, files, changes, expected):
    with pytest.raises(UserError, match=expected) as e:
        load(tmp_path, *files, **changes)
    assert "\n" not in str(e.value)


def test_a_failed_tokenizer_leaves_no_cache_entry(tmp_path):
    with pytest.raises(ConfigError, match=r"^data.tokenizer.vocab_size: is 10"):
        load(tmp_path, tokenizer=TokenizerConfig(vocab_size=10))
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_batches_that_cannot_be_divided_over_processes_are_refused(data):
    for batches in (data.valid_batches, lambda **kwargs: data.train_batches(seed=0, **kwargs)):
        with pytest.raises(UserError, match=r"^train.batch_tokens: makes batches of 6 rows, .* 4 equal parts"):
            batches(batch_size=6, shard=BatchShard((0,), 4))


# --- threads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "drop"])
def test_threads_end_with_the_iterator(data, end):
    before = set(threading.enumerate())
    iterator = data.train_batches(seed=0, batch_size=4)
    next(iterator)
    assert set(threading.enumerate()) - before
    if end == "close":
        iterator.close()
    del iterator
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=20)
        assert not thread.is_alive()


EXIT = """
import sys
from psann_jax.config import DataConfig, TokenizerConfig
from psann_jax.data.loader import load_text
tokenizer = TokenizerConfig(kind="bytes")
config = DataConfig(sources=(sys.argv[1],), tokenizer=tokenizer, max_length=8, cache_dir=sys.argv[2])
iterator = load_text(config).train_batches(seed=0, batch_size=4)
next(iterator)
if sys.argv[3] == "error":
    raise RuntimeError("stopped")
"""


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("error", 1)])
def test_an_open_iterator_does_not_keep_the_process_alive(tmp_path, how, code):
    (tmp_path / "a.txt").write_text("\n".join(random_lines(30, 0)))
    command = [sys.executable, "-c", EXIT, str(tmp_path / "a.txt"), str(tmp_path / "cache"), how]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == code, process.stderr
    assert process.stdout == ""


def test_batches_are_read_ahead(data, monkeypatch):
    read, get = [], PackedWindows.__getitem__
    monkeypatch.setattr(PackedWindows, "__getitem__", lambda self, i: read.append(i) or get(self, i))
    iterator = data.train_batches(seed=0, batch_size=4)
    next(iterator)
    deadline = time.monotonic() + 20
    while len(read) < 3 * 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    iterator.close()
    assert len(read) >= 3 * 4
