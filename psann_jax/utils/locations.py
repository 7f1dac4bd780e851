"""Where files are: a path on a disk, or the URL of a directory or object in a bucket."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psann_jax.utils.errors import UserError

# Scheme of a URL -> the module that reads and writes it.
BUCKET_MODULES = {"gs": "gcsfs", "s3": "s3fs"}
_FILE = "file"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@dataclass(frozen=True)
class BucketUrl:
    """A directory or object in a bucket.

    Attributes:
      scheme: gs or s3.
      path: the bucket and the name in it, without slashes at the ends.
    """

    scheme: str
    path: str

    @property
    def name(self) -> str:
        """The last part of the name, for titles."""
        return self.path.rpartition("/")[2]

    def __truediv__(self, name: str) -> "BucketUrl":
        return BucketUrl(self.scheme, f"{self.path}/{name}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"


def given_location(value: Any, name: str) -> Path | BucketUrl:
    """Returns what a path or URL of a user names; `~` is expanded, and file:// is a path.

    Args:
      value: a string or path.
      name: of the flag, setting or argument, for the message.

    Raises:
      UserError: it is of another type, no file can have this name, it begins with a user without a home directory, or
        its scheme is not supported.
    """
    if isinstance(value, BucketUrl):
        return value
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name}: is {value!r}, must be a path")
    text = os.fsdecode(value)
    url = _URL.fullmatch(text)
    if url is None:
        return _path(text, name)
    scheme, rest = url[1].lower(), url[2]
    if scheme == _FILE:
        if not rest.startswith("/"):
            raise UserError(f"{name}: is {text!r}, must be file:///ABSOLUTE/PATH")
        return _path(rest, name)
    if scheme not in BUCKET_MODULES:
        known = ", ".join(f"{known}://" for known in (_FILE, *BUCKET_MODULES))
        raise UserError(f"{name}: {text!r}: unknown scheme {scheme}://; use a path, or one of {known}")
    parts = rest.strip("/").split("/")
    if not all(parts) or any(part in (".", "..") for part in parts) or "\0" in rest:
        raise UserError(f"{name}: is {text!r}, must be {scheme}://BUCKET/NAME")
    return BucketUrl(scheme, "/".join(parts))


def _path(text: str, name: str) -> Path:
    try:
        if b"\0" not in os.fsencode(text):
            return Path(text).expanduser()
    except UnicodeEncodeError:
        pass
    except RuntimeError as error:
        raise UserError(f"{name}: {text}: there is no home directory of this user") from error
    raise UserError(f"{name}: is {text!r}, which has a character that no path can have")
