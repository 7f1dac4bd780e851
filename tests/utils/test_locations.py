"""Paths and URLs that users give."""

from pathlib import Path

import pytest

from psann_jax.utils.errors import UserError
from psann_jax.utils.files import given_path
from psann_jax.utils.locations import BucketUrl, given_location


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/small", Path("runs/small")),
        (Path("runs/small"), Path("runs/small")),
        ("a:b", Path("a:b")),
        ("~/runs", Path.home() / "runs"),
        ("file:///data/runs", Path("/data/runs")),
        ("FILE:///data/a%20b", Path("/data/a%20b")),
        ("s3://bucket/a/b", BucketUrl("s3", "bucket/a/b")),
        ("gs://bucket/a/", BucketUrl("gs", "bucket/a")),
        ("S3://bucket", BucketUrl("s3", "bucket")),
    ],
)
def test_a_location_is_a_path_or_a_url(given, expected):
    assert given_location(given, "--workdir") == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "gcs://bucket/a",
            "--workdir: 'gcs://bucket/a': unknown scheme gcs://; use a path, or one of file://, gs://, s3://",
        ),
        ("file://data", "--workdir: is 'file://data', must be file:///ABSOLUTE/PATH"),
        ("s3://", "--workdir: is 's3://', must be s3://BUCKET/NAME"),
        ("s3://bucket//a", "must be s3://BUCKET/NAME"),
        ("s3://bucket/../a", "must be s3://BUCKET/NAME"),
        ("s3://bucket/a\0", "must be s3://BUCKET/NAME"),
        ("~nobody-has-this-name/a", "there is no home directory of this user"),
        ("a\0b", "has a character that no path can have"),
        (3, "--workdir: is 3, must be a path"),
    ],
)
def test_other_locations_are_refused_in_one_line(given, message):
    with pytest.raises(UserError) as refused:
        given_location(given, "--workdir")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_where_a_disk_is_needed_a_bucket_is_refused():
    assert given_path("file:///tmp/cache", "data.cache_dir") == Path("/tmp/cache")
    with pytest.raises(UserError, match=r"^data.cache_dir: is s3://bucket/cache, must be a path on a disk"):
        given_path("s3://bucket/cache", "data.cache_dir")


def test_a_url_has_a_name_and_parts():
    url = BucketUrl("s3", "bucket/runs/small")
    assert (str(url), url.name, str(url / "config.json")) == (
        "s3://bucket/runs/small",
        "small",
        "s3://bucket/runs/small/config.json",
    )
