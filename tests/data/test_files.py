"""Reading of text files in every format and compression, intact and damaged."""

import functools
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psann_jax.data import files
from psann_jax.data.records import Records
from psann_jax.utils.errors import UserError

ZST = functools.partial(pa.compress, codec="zstd", asbytes=True)
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": ZST}
LINES = ["first line", "  second, indented ", "dritte: Größe", "\u2028 does not end a line", "日本語"]


def read(path: Path, document: str = "line", text_field: str = "text") -> list[str]:
    return list(files.read_documents(path, document, Records(text_field)))


def message(path: Path, **kwargs: str) -> str:
    with pytest.raises(UserError) as e:
        read(path, **kwargs)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("extension", COMPRESS)
def test_lines_of_a_text_file_are_documents(tmp_path, extension):
    path = tmp_path / f"a.txt{extension}"
    path.write_bytes(COMPRESS[extension]("\n".join([*LINES[:2], "", " \t ", *LINES[2:]]).encode()))
    assert read(path) == LINES


@pytest.mark.parametrize("extension", COMPRESS)
def test_a_whole_text_file_is_one_document(tmp_path, extension):
    text = "one\n\n two\r\nthree \n"
    path = tmp_path / f"a.txt{extension}"
    path.write_bytes(COMPRESS[extension](b"\xef\xbb\xbf" + text.encode()))
    assert read(path, document="file") == ["one\n\n two\nthree \n"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_are_no_part_of_a_text(tmp_path, line_end):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + line_end.join(["one", "two", "", "three", ""]).encode())
    assert read(path) == ["one", "two", "three"]
    assert read(path, document="paragraph") == ["one\ntwo", "three"]
    assert read(path, document="file") == ["one\ntwo\n\nthree\n"]


def test_a_carriage_return_within_a_line_is_kept(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"10 %\r20 %\ndone\n")
    assert read(path) == ["10 %\r20 %", "done"]


@pytest.mark.parametrize("extension", COMPRESS)
def test_jsonl_records(tmp_path, extension):
    records = [{"text": t, "other": 1} for t in [*LINES, "two\nlines"]] + [{"text": None}, {"text": "  "}]
    path = tmp_path / f"a.jsonl{extension}"
    path.write_bytes(COMPRESS[extension]("\n\n".join(map(json.dumps, records)).encode()))
    assert read(path) == [*LINES, "two\nlines"]


def test_parquet_column(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"document {i}" for i in range(3000)]
    pq.write_table(pa.table({"id": range(3002), "body": [None, " ", *texts]}), path, row_group_size=700)
    assert read(path, text_field="body") == texts
    assert "data.text_field" in message(path)
    assert "'body'" in message(path)


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    assert read(path) == ["one", "two"]


def test_all_frames_of_a_zst_file_are_read(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(COMPRESS[".zst"](b"one\n") + COMPRESS[".zst"](b"two\n"))
    assert read(path) == ["one", "two"]


@pytest.mark.parametrize("extension", [".gz", ".xz", ".zst"])
def test_truncated_and_corrupt_compressed_files(tmp_path, extension):
    data = COMPRESS[extension]("\n".join(str(i * i) for i in range(20000)).encode())
    path = tmp_path / f"a.txt{extension}"
    path.write_bytes(data[: len(data) // 2])
    assert message(path).startswith(f"{path}: cannot be read: ")
    path.write_bytes(b"this is not compressed at all")
    assert message(path).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("document", ["line", "file"])
@pytest.mark.parametrize("extension", COMPRESS)
def test_undecodable_bytes_name_offset_and_line(tmp_path, extension, document):
    path = tmp_path / f"a.txt{extension}"
    path.write_bytes(COMPRESS[extension]("é one\ntwo\nthr".encode() + b"\xffee\n"))
    assert f"{path}: byte 0xff at offset 14 (line 3)" in message(path, document=document)


def test_undecodable_bytes_in_a_parquet_column_of_bytes(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [b"good", b"b\xffd"]}), path)
    assert f"{path}: row 1: byte 0xff at offset 1" in message(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "a"', "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('["text"]', "line 2 is not a JSON object with the field 'text'"),
        ('{"txt": "a", "id": 3}', "has no field 'text'; it has 'txt', 'id'"),
        ('{"text": 3}', "'text' holds int, not text"),
        (r'{"text": "\ud800"}', "unpaired surrogate"),
    ],
)
def test_errors_in_jsonl_name_the_line(tmp_path, line, expected):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "good"}}\n{line}\n')
    assert str(path) in message(path)
    assert "line 2" in message(path)
    assert expected in message(path)


@pytest.mark.parametrize("name", ["a.csv", "a", "a.txt.bz2", "a.parquet.gz", ".gz"])
def test_unknown_extensions(tmp_path, name):
    assert f"{tmp_path / name}: unknown file type; use .txt" in message(tmp_path / name)


def test_unreadable_files(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    assert "folder.txt: cannot be read: Is a directory" in message(tmp_path / "folder.txt")
    assert "gone.txt: cannot be read: No such file" in message(tmp_path / "gone.txt")
    (tmp_path / "a.parquet").write_bytes(b"not a Parquet file")
    assert "a.parquet: cannot be read: Parquet" in message(tmp_path / "a.parquet")
