"""A real S3 server on this machine, moto's, in its own process."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid

import pytest

from psann_jax.utils.buckets import Bucket
from psann_jax.utils.locations import given_location


@contextlib.contextmanager
def s3_server():
    """Starts the server, and yields the environment variables with which clients find it; skips without moto."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        process.kill()
        process.wait()


def _wait_for(url, process):
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None, "moto's server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)


@contextlib.contextmanager
def s3_bucket():
    """Yields the URL of a new bucket on a server of its own, which this process and its children use."""
    with s3_server() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import s3fs

        name = f"bucket-{uuid.uuid4().hex[:8]}"
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
        yield f"s3://{name}"


def bucket_at(url):
    """Returns the objects below a URL."""
    return Bucket(given_location(url, "url"), "url")


def fetch(url, directory):
    """Copies all objects below a URL to a new directory, and returns it."""
    shutil.rmtree(directory, ignore_errors=True)
    bucket = bucket_at(url)
    bucket.download(bucket.files(), directory)
    return directory
