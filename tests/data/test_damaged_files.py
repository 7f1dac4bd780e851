"""Damaged files of every format are read or reported in one line, never anything else."""

import gzip
import io
import json
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psann_jax.config import DataConfig, TokenizerConfig
from psann_jax.data import files
from psann_jax.data.records import Records
from psann_jax.data.sources import open_source
from psann_jax.data.sudoku.files import read_puzzles
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.utils.errors import UserError
from tests.support.damage import flip_bit

TEXT = "first line\nsecond line\n\nthird: Größe 日本\n"
RECORDS = "\n".join(json.dumps({"text": line, "n": 1}) for line in TEXT.split("\n"))
CSV = (
    "question,answer,rating\n"
    "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79,"
    "534678912672195348198342567859761423426853791713924856961537284287419635345286179,3\n"
)


def parquet(text: pa.Array) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": text, "n": range(len(text))}), out)
    return out.getvalue()


def tokenizer_file(kind: str) -> bytes:
    return train_tokenizer([TEXT] * 9, TokenizerConfig(kind=kind, vocab_size=300), progress=False).to_bytes()


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
FILES = {
    **{f"a.txt{extension}": compress(TEXT.encode()) for extension, compress in COMPRESS.items()},
    **{f"a.jsonl{extension}": compress(RECORDS.encode()) for extension, compress in COMPRESS.items()},
    **{f"a.csv{extension}": compress(CSV.encode()) for extension, compress in COMPRESS.items()},
    "a.parquet": parquet(pa.array(TEXT.split("\n"))),
    "dictionary.parquet": parquet(pa.array(TEXT.split("\n")).dictionary_encode()),
}
TOKENIZERS = ("bpe", "unigram", "wordpiece", "sentencepiece")


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Strategy for a file with a few bytes changed, removed or repeated."""
    at = st.integers(0, len(data) - 1)
    flipped = st.tuples(at, st.integers(1, 255)).map(
        lambda x: data[: x[0]] + bytes([data[x[0]] ^ x[1]]) + data[x[0] + 1 :]
    )
    cut = st.tuples(at, at).map(lambda x: data[: min(x)] + data[max(x) :])
    doubled = st.tuples(at, at).map(lambda x: data[: max(x)] + data[min(x) :])
    return st.one_of(flipped, cut, doubled, st.binary(max_size=40))


def fuzz(path, data: bytes, read, examples: int = 150) -> None:
    @settings(deadline=None, max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(damaged(data))
    def check(content):
        path.write_bytes(content)
        problem = ""
        try:
            read(path)
        except UserError as e:
            problem = str(e)
        assert "\n" not in problem

    check()


@pytest.mark.parametrize("name", [name for name in FILES if ".csv" not in name])
def test_texts(tmp_path, name):
    fuzz(tmp_path / name, FILES[name], lambda path: list(open_source(str(path), DataConfig()).documents()))


@pytest.mark.parametrize("name", [name for name in FILES if ".txt" in name])
def test_whole_files(tmp_path, name):
    whole = DataConfig(document="file")
    fuzz(tmp_path / name, FILES[name], lambda path: list(open_source(str(path), whole).documents()))


@pytest.mark.parametrize("name", [name for name in FILES if ".csv" in name])
def test_puzzles(tmp_path, name):
    fuzz(tmp_path / name, FILES[name], lambda path: read_puzzles(path, progress=False))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers(tmp_path, kind):
    def read(path):
        Tokenizer.load(path).encode("some text <eos>")

    fuzz(tmp_path / "tokenizer.json", tokenizer_file(kind), read, examples=30 if kind == "sentencepiece" else 150)


def message(path) -> str:
    with pytest.raises(UserError) as e:
        list(files.read_documents(path, "line", Records()))
    assert "\n" not in str(e.value)
    return str(e.value)


def test_a_changed_bit_in_a_gzip_file(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(np.random.default_rng(0).bytes(3000).hex().encode()))
    flip_bit(path)
    assert message(path).startswith(f"{path}: ")


def test_zst_windows_of_more_than_128_mib(tmp_path):
    # A frame whose header asks for a window of 2 GiB, as from zstd --long=31, with an empty last block.
    path = tmp_path / "a.txt.zst"
    path.write_bytes(bytes.fromhex("28b52ffd 00 a8 010000"))
    assert message(path) == (
        f"{path}: its zstd window is larger than 128 MiB; "
        "decompress it with zstd -d --long=31, or compress it again with --long=27 or less"
    )


def test_a_parquet_string_that_is_not_utf_8(tmp_path):
    path = tmp_path / "a.parquet"
    for strings, binary in ((pa.string(), pa.binary()), (pa.large_string(), pa.large_binary())):
        column = pa.array([b"good", b"b\xffd"], binary)
        bad = pa.Array.from_buffers(strings, 2, column.buffers())
        path.write_bytes(parquet(bad))
        assert f"{path}: row 1: byte 0xff at offset 1 of 'text' is not UTF-8" in message(path)


def test_an_integer_with_too_many_digits(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "n": ' + "1" * 5000 + "}")
    assert message(path).startswith(f"{path}: line 1 is not JSON: Exceeds the limit")


@pytest.mark.parametrize(
    "pointer",
    [
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "/annex/objects/SHA256E-s12--4d7a.txt\n",
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.parquet"])
def test_pointer_files_are_refused(tmp_path, name, pointer):
    (tmp_path / name).write_text(pointer)
    for spec in (tmp_path / name, tmp_path / "a*"):
        with pytest.raises(UserError, match=rf"{name}: is a .* pointer, not the file itself; fetch it with `git "):
            open_source(str(spec), DataConfig())
