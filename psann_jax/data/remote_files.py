"""Files on the web and in buckets that are read while they are used, without a copy on a disk.

A file is read from a byte on, in one request. If that fails, another request continues from the byte that was reached,
after a while, and the reader notices nothing.
"""

import dataclasses
import http.client
import io
import re
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from psann_jax.utils.buckets import Bucket
from psann_jax.utils.errors import UserError, one_line

# Seconds before each repetition of a request; one that reads something starts them again.
WAITS_S: tuple[float, ...] = (1, 2, 5, 10, 30)
_TIMEOUT_S = 20  # without a byte from the server
_BUFFER_BYTES = 1 << 22
_WEB = re.compile("https?://", re.IGNORECASE)
_PART = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")  # of a Content-Range: first byte, size of the file
# Answers of a web server that another try may change: timeouts, too many requests, and its own errors.
_TEMPORARY = {408, 425, 429}


class Connection(NamedTuple):
    """An answer to a request for a file from a byte on.

    Attributes:
      read: returns the next bytes of the file, at most so many; b"" at its end.
      close: ends the connection.
      size: of the whole file in bytes; None if the server does not say.
      version: differs if the file has changed; "" if the server does not say.
    """

    read: Callable[[int], bytes]
    close: Callable[[], Any]
    size: int | None
    version: str


@dataclass(frozen=True)
class RemoteFile:
    """A file that is not on a disk; str() of it is its URL.

    Attributes:
      url: its URL.
      connect: requests the file from a byte on. It raises FileNotFoundError or PermissionError if repeating the request
        is of no use, and any other exception if it may be.
      size: in bytes, which it must have; None: any.
      version: which it must have; "": any.
      stopped: ends all reading of the file, at the next failure of a request.
    """

    url: str
    connect: Callable[[int], Connection]
    size: int | None = None
    version: str = ""
    stopped: threading.Event = field(default_factory=threading.Event, compare=False)

    @property
    def path(self) -> PurePosixPath:
        """The name, with its extensions."""
        return PurePosixPath(urllib.parse.urlsplit(self.url).path if is_web(self.url) else self.url)

    def __str__(self) -> str:
        return self.url

    def open(self) -> BinaryIO:
        """Opens the file for reading; it can be read from any position.

        Raises:
          OSError: the file cannot be read; reading raises it too.
        """
        return cast(BinaryIO, io.BufferedReader(_RawFile(self), _BUFFER_BYTES))

    def fixed(self) -> "RemoteFile":
        """Returns the file in the size and version that it has now, as far as the server says.

        Raises:
          OSError: the file cannot be read.
        """
        with _RawFile(self) as file:
            return dataclasses.replace(self, size=file.size, version=file.version)


def is_web(spec: str) -> bool:
    """Returns whether a source is a URL of the web."""
    return bool(_WEB.match(spec))


def web_file(url: str) -> RemoteFile:
    """Returns a file on the web.

    Raises:
      UserError: it cannot be a URL.
    """
    try:
        urllib.parse.urlsplit(url)
    except ValueError as error:
        raise UserError(f"{url}: is not the URL of a file: {error}") from error
    return RemoteFile(url, lambda start: _request(url, start))


def bucket_file(url: str, bucket: Bucket, name: str, version: str) -> RemoteFile:
    """Returns a version of an object of a bucket; `name` is relative to that."""

    def connect(start: int) -> Connection:
        file, size, found = bucket.open(name, start)
        return Connection(file.read, file.close, size, found)

    return RemoteFile(url, connect, version=version)


class _RawFile(io.RawIOBase):
    """Reads a file through as many connections as it takes."""

    def __init__(self, file: RemoteFile):
        super().__init__()
        self._file, self._position = file, 0
        self._connection: Connection | None = None
        self.version, self.size = file.version, file.size
        self._attempt(self._connect)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self.size is None:
            raise OSError("its server does not say how long it is, which this format needs")
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size or 0}[whence]
        if position != self._position:
            self._disconnect()
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        data = b"" if self._position == self.size else self._attempt(lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _attempt(self, action: Callable[[], Any]) -> Any:
        """Does something that needs the network, again if it fails."""
        for wait in (*WAITS_S, None):
            try:
                return action()
            except (FileNotFoundError, PermissionError, UserError, _ChangedError):
                self._disconnect()
                raise
            except Exception as error:  # the libraries have no common class
                self._disconnect()
                if wait is None:
                    raise OSError(f"{one_line(error)} ({len(WAITS_S) + 1} attempts)") from error
                print(f"{self._file}: {one_line(error)}; trying again in {wait:g} s", file=sys.stderr, flush=True)
                if self._file.stopped.wait(wait):
                    raise OSError("the run has ended") from error
        raise AssertionError

    def _read(self, n: int) -> bytes:
        connection = self._connection or self._connect()
        data = connection.read(n)
        if not data and self.size is not None and self._position < self.size:
            raise OSError(f"the connection ended after {self._position:,} of {self.size:,} bytes")
        return data

    def _connect(self) -> Connection:
        self._connection = found = self._file.connect(self._position)
        if self.version not in ("", found.version) or self.size not in (None, found.size):
            raise _ChangedError("it has changed since the run began")
        self.size, self.version = found.size, found.version
        return found

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


class _ChangedError(OSError):
    """A file is another one than at the first request."""


def _request(url: str, start: int) -> Connection:
    """Requests a file of the web; a server that sends no parts sends it from the beginning, which is skipped."""
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity", "User-Agent": "psann_jax"}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and not start:
            return Connection(lambda n: b"", lambda: None, 0, "")  # an empty file has no first byte
        if 400 <= error.code < 500 and error.code not in _TEMPORARY:
            raise FileNotFoundError(f"the server answers {error.code} {error.reason}") from error
        raise
    except (ValueError, http.client.InvalidURL) as error:
        raise UserError(f"{url}: is not the URL of a file: {one_line(error)}") from error
    headers = response.headers
    version = headers.get("ETag") or headers.get("Last-Modified") or ""
    # read1 returns what has arrived, which a connection that then fails has not lost.
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        found = _PART.fullmatch(headers.get("Content-Range", "").strip())
        if found is None or int(found[1]) != start:
            raise OSError("the server sends another part of the file than was asked for")
        return Connection(response.read1, response.close, int(found[2]) if found[2] != "*" else None, version)
    length = headers.get("Content-Length", "")
    if not (length.isdigit() or response.chunked):
        raise FileNotFoundError("its server does not say where it ends, so a lost part would not be noticed")
    while start:
        skipped = len(response.read(min(start, _BUFFER_BYTES)))
        if not skipped:
            raise OSError("the connection ended early")
        start -= skipped
    return Connection(response.read1, response.close, int(length) if length.isdigit() else None, version)
