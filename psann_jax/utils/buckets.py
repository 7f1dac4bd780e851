"""Objects of one directory in a bucket: listing, reading, writing and deleting them, with errors in one line.

Credentials, endpoints and regions are those of the libraries, s3fs (botocore) and gcsfs: environment variables, config
files, or the role of the machine.
"""

import contextlib
import copy
import glob
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from psann_jax.utils.errors import UserError, one_line
from psann_jax.utils.extras import require_extra
from psann_jax.utils.locations import BUCKET_MODULES, BucketUrl

_TIMEOUT_S = 20
_VERSION = ("size", "ETag", "etag", "generation")  # facts about an object that change with its content
# Of the file systems. botocore repeats a request that fails for reasons of the network or the server.
_OPTIONS = {"s3": {"config_kwargs": {"connect_timeout": _TIMEOUT_S, "read_timeout": 3 * _TIMEOUT_S}}}


class Bucket:
    """The objects below one URL; names are relative to it, with slashes."""

    def __init__(self, url: BucketUrl, what: str) -> None:
        """Connects.

        Args:
          url: the directory, which need not exist.
          what: the flag, setting or argument that gave the URL, for the message about a missing library.

        Raises:
          UserError: the library is not installed.
        """
        require_extra(f"{what}: {url}", BUCKET_MODULES[url.scheme], extra="buckets")
        import fsspec  # comes with s3fs and gcsfs

        self.url = url
        with bucket_errors(url, "read"):
            # Without caches: other machines change the bucket too.
            self._fs = fsspec.filesystem(
                url.scheme, use_listings_cache=False, skip_instance_cache=True, **_OPTIONS.get(url.scheme, {})
            )

    def below(self, name: str) -> "Bucket":
        """Returns the directory of a name in this one, this one itself for ""; it uses the same connections."""
        found = copy.copy(self)
        found.url = self.url / name if name else self.url
        return found

    def files(self, below: str = "") -> dict[str, Mapping[str, Any]]:
        """Returns the objects below a directory by name, with their "size" in bytes and what tells versions apart.

        Raises:
          UserError: the bucket cannot be read.
        """
        root = self._path(below)
        with bucket_errors(self.url, "read"):
            try:
                found = self._fs.find(root, detail=True)
            except FileNotFoundError:
                return {}
        prefix = f"{self.url.path}/"
        return {p.removeprefix(prefix): facts for p, facts in sorted(found.items()) if p.startswith(prefix)}

    def matching(self) -> dict[str, str]:
        """Returns the objects that the URL names, as a glob or as it is: URL -> what identifies the content.

        Raises:
          UserError: the bucket cannot be read.
        """
        pattern = self.url.path
        with bucket_errors(self.url, "read"):
            if self._fs.exists(pattern):  # its name may look like a glob
                found = {pattern: self._fs.info(pattern)}
            else:
                found = self._fs.glob(pattern, detail=True) if glob.has_magic(pattern) else {}
        return {
            str(BucketUrl(self.url.scheme, path)): _version(facts)
            for path, facts in sorted(found.items())
            if facts["type"] == "file"
        }

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object, None if there is no such object.

        Raises:
          UserError: it cannot be read.
        """
        with bucket_errors(self.url / name, "read"):
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def open(self, name: str, start: int) -> tuple[BinaryIO, int, str]:
        """Opens an object for reading from a byte on; reading raises what the library raises.

        Returns:
          The open file; the size of the object in bytes; what identifies its content.

        Raises:
          Exception: it cannot be read; FileNotFoundError and PermissionError say why.
        """
        file = self._fs.open(self._path(name), "rb", cache_type="none")
        file.seek(start)
        return file, file.size, _version(file.details)

    def write(self, name: str, content: bytes) -> None:
        """Writes an object; it has its old content or the whole new one.

        Raises:
          UserError: it cannot be written.
        """
        with bucket_errors(self.url / name, "written"):
            self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object unless there is one of this name; returns whether it was written.

        Raises:
          UserError: it cannot be written.
        """
        with bucket_errors(self.url / name, "written"):
            try:
                self._fs.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
        return True

    def upload(self, directory: Path, names: Iterable[str]) -> None:
        """Copies files of a directory to objects of the same names, several at a time.

        Raises:
          UserError: an object cannot be written.
        """
        chosen = list(names)
        if chosen:
            with bucket_errors(self.url, "written"):
                self._fs.put([str(directory / name) for name in chosen], [self._path(name) for name in chosen])

    def download(self, names: Iterable[str], directory: Path) -> None:
        """Copies objects to files of the same names in a directory, several at a time.

        Raises:
          UserError: an object cannot be read, or a file cannot be written.
        """
        chosen = list(names)
        if chosen:
            with bucket_errors(self.url, "read"):
                for parent in {(directory / name).parent for name in chosen}:
                    parent.mkdir(parents=True, exist_ok=True)
                self._fs.get([self._path(name) for name in chosen], [str(directory / name) for name in chosen])

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects, as far as they exist.

        Raises:
          UserError: an object cannot be deleted.
        """
        for name in names:
            # Not `rm` of a list, which takes characters such as [ for a glob.
            with bucket_errors(self.url / name, "written"), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.url.path}/{name}" if name else self.url.path


def _version(facts: Mapping[str, Any]) -> str:
    return " ".join(str(facts.get(name)) for name in _VERSION)


@contextlib.contextmanager
def written_to(location: Path | BucketUrl, what: str) -> Iterator[Path]:
    """Yields a path to write a file or a directory to; what is there when the context ends is then in `location`.

    Args:
      location: where the results go; a path is yielded as it is.
      what: the flag, setting or argument that gave the location.

    Raises:
      UserError: the bucket cannot be written.
    """
    if isinstance(location, Path):
        yield location
        return
    parent, _, name = location.path.rpartition("/")
    bucket = Bucket(BucketUrl(location.scheme, parent), what)
    with tempfile.TemporaryDirectory(prefix="psann_jax-") as temporary:
        yield Path(temporary, name)
        files = sorted(path for path in Path(temporary).rglob("*") if path.is_file())
        bucket.upload(Path(temporary), [path.relative_to(temporary).as_posix() for path in files])


@contextlib.contextmanager
def bucket_errors(url: BucketUrl, action: str) -> Iterator[None]:
    """Converts the errors of the libraries, which have no common class, to UserError that names the URL.

    Raises:
      UserError: instead of another exception.
    """
    try:
        yield
    except (UserError, FileNotFoundError, FileExistsError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{url}: cannot be {action}: there is no such bucket or object") from error
    except Exception as error:
        raise UserError(f"{url}: cannot be {action}: {one_line(error)}") from error
