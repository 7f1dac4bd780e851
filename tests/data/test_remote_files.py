"""Files on the web and in buckets, read without a copy."""

import gzip
import json
import lzma
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psann_jax.data import remote_files
from psann_jax.data.files import read_documents
from psann_jax.data.records import Records
from psann_jax.data.remote_files import bucket_file, is_web, web_file
from psann_jax.utils.errors import UserError
from tests.support.bucket import bucket_at, s3_bucket
from tests.support.web import Stall, web_server

TEXTS = [f"document {i}: " + "wörter 波 " * (i % 7) for i in range(300)]


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_files, "WAITS_S", (0, 0))
    with web_server(tmp_path) as server:
        yield server


def write_all(folder):
    """Writes `TEXTS` in every format, and returns the names of the files."""
    lines = "\n".join(TEXTS).encode()
    records = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
    contents = {
        "a.txt": lines,
        "b.jsonl": records,
        "c.txt.gz": gzip.compress(lines),
        "d.jsonl.xz": lzma.compress(records),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with pa.output_stream(folder / "e.jsonl.zst", compression="zstd") as file:
        file.write(records)
    pq.write_table(pa.table({"other": [0] * len(TEXTS), "text": TEXTS}), folder / "f.parquet", row_group_size=50)
    return [*contents, "e.jsonl.zst", "f.parquet"]


def read(file, document="line"):
    return list(read_documents(file, document, Records()))


def message(file):
    with pytest.raises(UserError) as e:
        read(file)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("ranges", [True, False])
def test_all_formats_are_read_from_the_web(web, tmp_path, ranges):
    web.ranges = ranges
    for name in write_all(tmp_path):
        assert read(web_file(f"{web.url}/{name}")) == TEXTS, name
        assert read(web_file(f"{web.url}/{name}?download=true")) == TEXTS, name


def test_all_formats_are_read_from_a_bucket(tmp_path):
    names = write_all(tmp_path)
    with s3_bucket() as url:
        bucket = bucket_at(url)
        bucket.upload(tmp_path, names)
        for name in names:
            file = bucket_file(f"{url}/{name}", bucket, name, "")
            assert file.fixed().size == (tmp_path / name).stat().st_size
            assert read(file) == TEXTS, name
        gone = message(bucket_file(f"{url}/gone.txt", bucket, "gone.txt", ""))
        assert gone.startswith(f"{url}/gone.txt: cannot be read: ")


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["a.txt", "c.txt.gz", "f.parquet"])
def test_a_broken_connection_is_continued(web, tmp_path, ranges, name, capsys):
    write_all(tmp_path)
    web.ranges = ranges
    size = (tmp_path / name).stat().st_size
    web.failures = [503, None, size // 3, 429, size // 2, 500]
    assert read(web_file(f"{web.url}/{name}")) == TEXTS
    assert web.failures == [] or len(web.requests) < 6
    if ranges and name == "a.txt":
        assert [found for _, found in web.requests][2:5] == [f"bytes={size // 3}-"] * 3 or web.failures
    assert f"{web.url}/{name}: " in capsys.readouterr().err


def test_a_file_is_read_from_the_byte_that_was_reached(web, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0123456789" * 10)
    web.failures = [30, 20]
    with web_file(f"{web.url}/a.txt").open() as file:
        assert file.read() == b"0123456789" * 10
    assert [found for _, found in web.requests] == ["bytes=0-", "bytes=30-", "bytes=50-"]


def test_an_error_that_lasts_is_one_line(web, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    web.failures = [503] * 9
    assert message(web_file(f"{web.url}/a.txt")) == (
        f"{web.url}/a.txt: cannot be read: HTTP Error 503: Service Unavailable (3 attempts)"
    )
    assert len(web.requests) == 3


def test_a_file_that_is_not_there_is_not_asked_for_again(web):
    assert message(web_file(f"{web.url}/a.txt")) == (
        f"{web.url}/a.txt: cannot be read: the server answers 404 Not Found"
    )
    assert len(web.requests) == 1


def test_a_server_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(remote_files, "WAITS_S", (0,))
    assert "http://127.0.0.1:1/a.txt: cannot be read: " in message(web_file("http://127.0.0.1:1/a.txt"))
    assert "is not the URL of a file" in message(web_file("http://x:y/a.txt"))
    with pytest.raises(UserError, match=r"^http://\[/a.txt: is not the URL of a file: Invalid IPv6 URL$"):
        web_file("http://[/a.txt")


def test_a_file_that_changes_while_it_is_read_is_refused(web, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old text\n" * 100)
    web.failures = [90]
    with web_file(f"{web.url}/a.txt").open() as file:
        path.write_bytes(b"new text\n" * 100)
        with pytest.raises(OSError, match="it has changed since the run began"):
            file.read()


def test_an_empty_file(web, tmp_path):
    (tmp_path / "a.txt").touch()
    for web.ranges in (True, False):
        assert web_file(f"{web.url}/a.txt").fixed().size == 0
        assert read(web_file(f"{web.url}/a.txt")) == []


def test_a_truncated_archive_is_an_error(web, tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n".join(TEXTS).encode())[:-100])
    assert "cannot be read: Compressed file ended" in message(web_file(f"{web.url}/a.txt.gz"))


def test_urls_of_the_web():
    assert [is_web(spec) for spec in ("https://x/a.txt", "HTTP://x/a", "s3://x/a", "https", "a/https://b")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_bytes_that_arrived_before_a_stall_are_kept(web, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_files, "_TIMEOUT_S", 0.2)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    web.failures = [Stall(1000)] * 4  # more than the attempts that bring nothing
    assert read(web_file(f"{web.url}/a.txt")) == TEXTS
    starts = [int(part.removeprefix("bytes=").removesuffix("-")) for _, part in web.requests]
    assert starts == [0, 1000, 2000, 3000, 4000]


@pytest.mark.parametrize(
    ("ranges", "edit", "expected"),
    [
        (True, {"Content-Range": "bytes 5-99/100"}, "the server sends another part of the file than was asked for"),
        (True, {"Content-Range": "nonsense"}, "the server sends another part of the file than was asked for"),
        (True, {"Content-Range": "bytes 0-99/1000"}, "the server answers 416 "),
        (False, {"Content-Length": None}, "its server does not say where it ends, so a lost part would not be noticed"),
        (False, {"Content-Length": "1000"}, "the connection ended after 100 of 1,000 bytes (3 attempts)"),
    ],
)
def test_a_server_that_lies(web, tmp_path, ranges, edit, expected):
    (tmp_path / "a.txt").write_bytes(b"123456789\n" * 10)
    web.ranges = ranges

    def change(headers):
        kept = headers | edit
        headers.clear()
        headers.update({name: value for name, value in kept.items() if value is not None})

    web.edit = change
    assert expected in message(web_file(f"{web.url}/a.txt"))


def test_waiting_for_another_attempt_can_be_ended(web, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_files, "WAITS_S", (3600,))
    (tmp_path / "a.txt").write_text("text")
    file = web_file(f"{web.url}/a.txt")
    web.failures = [503]
    threading.Timer(0.1, file.stopped.set).start()
    assert message(file) == f"{web.url}/a.txt: cannot be read: the run has ended"
