"""Copies of objects in buckets in the cache, where they are read like other files.

Text is read in pieces by several processes and tokenised once, so a copy on a local disk is read at full speed, and its
hash says whether the text is the same wherever it comes from.
"""

import sys
from pathlib import Path

from psann_jax.data.cache import get_or_make, key_of
from psann_jax.utils.buckets import Bucket
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import BucketUrl, given_location


def local_copies(url: BucketUrl, root: Path, field: str, progress: bool = False) -> dict[str, Path]:
    """Returns copies of the objects that a URL or a glob names; downloads those that are new or have changed.

    Args:
      url: of an object, or a glob.
      root: the cache directory.
      field: the setting that names the URL, for messages.
      progress: say on stderr what is downloaded.

    Returns:
      URL -> path, sorted; {} if there is no such object.

    Raises:
      UserError: the bucket cannot be read, or the cache cannot be written.
    """
    copies = {}
    for name, version in Bucket(url, field).matching().items():
        found = BucketUrl(url.scheme, name.partition("://")[2])
        parent, _, file = found.path.rpartition("/")

        def download(directory: Path, parent: str = parent, file: str = file) -> None:
            if progress:
                print(f"downloading {url.scheme}://{parent}/{file}", file=sys.stderr)
            Bucket(BucketUrl(url.scheme, parent), field).download([file], directory)

        copies[name] = get_or_make(root / "downloads", key_of(name, version), download, progress) / file
    return copies


def local_file(value: object, root: Path, field: str) -> Path:
    """Returns the path of one file that a setting names, which may be an object in a bucket.

    Raises:
      UserError: see `local_copies` and `psann_jax.utils.locations.given_location`; or there is no such object.
    """
    location = given_location(value, field)
    if isinstance(location, Path):
        return location
    copies = local_copies(location, root, field)
    if len(copies) != 1:
        raise UserError(f"{field}: {location}: must be one object, but {len(copies)} have this name")
    return next(iter(copies.values()))
