"""Objects in a bucket, on a real S3 server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import EXTRA_OF
from psann_jax.utils.locations import BUCKET_MODULES
from tests.support.bucket import bucket_at, s3_bucket


@pytest.fixture(scope="module")
def server():
    with s3_bucket() as url:
        yield url


@pytest.fixture
def bucket(server, tmp_path):
    return bucket_at(f"{server}/{tmp_path.name}/run [1] *?")


def test_objects_come_back_as_written(bucket, tmp_path):
    assert bucket.files() == {}
    assert bucket.read("a.json") is None
    bucket.write("a.json", b"old")
    bucket.write("a.json", b"new content")
    assert bucket.read("a.json") == b"new content"
    source = tmp_path / "source"
    for name, content in {"x/y.bin": bytes(range(256)) * 300, "empty": b"", "ä [ö].txt": b"umlaut"}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    names = ["x/y.bin", "empty", "ä [ö].txt"]
    bucket.upload(source, names)
    found = bucket.files()
    sizes = {"a.json": 11, "empty": 0, "x/y.bin": 76800, "ä [ö].txt": 6}
    assert {name: facts["size"] for name, facts in found.items()} == sizes
    assert bucket.files("x").keys() == {"x/y.bin"}
    bucket.download(names, tmp_path / "copy")
    assert {n: (tmp_path / "copy" / n).read_bytes() for n in names} == {n: (source / n).read_bytes() for n in names}
    bucket.delete([*names, "missing"])
    assert bucket.files().keys() == {"a.json"}


def test_an_object_is_created_once(bucket):
    assert bucket.create("lease", b"mine")
    assert not bucket.create("lease", b"yours")
    assert bucket.read("lease") == b"mine"


def test_a_name_that_begins_like_the_directory_is_not_in_it(server, tmp_path):
    bucket_at(f"{server}/{tmp_path.name}/run").write("a", b"1")
    bucket_at(f"{server}/{tmp_path.name}/run2").write("b", b"2")
    assert bucket_at(f"{server}/{tmp_path.name}/run").files().keys() == {"a"}


def test_errors_name_the_url(bucket, server, monkeypatch):
    with pytest.raises(UserError, match=r"^s3://no-such-bucket/run/a: cannot be written: "):
        bucket_at("s3://no-such-bucket/run").write("a", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match=r"^s3://bucket/run: cannot be read: Could not connect"):
        bucket_at("s3://bucket/run").files()


def test_every_scheme_has_an_extra():
    assert {EXTRA_OF[module] for module in BUCKET_MODULES.values()} == {"buckets"}


class _Storage(BaseHTTPRequestHandler):
    """One object of Google Cloud Storage, with the condition `ifGenerationMatch` of its JSON API."""

    contents: ClassVar[list] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        must_be_new = parse_qs(urlsplit(self.path).query).get("ifGenerationMatch") == ["0"]
        if self.contents and must_be_new:
            self.answer(412, b"{}")
            return
        self.contents.append(body.split(b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n")[-1].partition(b"\n--")[0])
        self.answer(200, json.dumps({"name": "run/lease", "bucket": "b", "size": "4", "generation": "1"}).encode())

    def do_GET(self):
        self.answer(200, self.contents[-1])

    def answer(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def test_an_object_of_google_is_created_once(monkeypatch):
    pytest.importorskip("gcsfs")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Storage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    try:
        bucket = bucket_at("gs://b/run")
        assert bucket.create("lease", b"mine")
        assert not bucket.create("lease", b"yours")
        assert bucket.read("lease") == b"mine"
    finally:
        server.shutdown()
        server.server_close()
