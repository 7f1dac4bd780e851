"""Reads weights from a path of any supported format."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from psann_jax.config import require
from psann_jax.config.names import nearest
from psann_jax.convert.hf.read import read_folder
from psann_jax.convert.ngt import is_ngt, read_ngt
from psann_jax.convert.psannlm import read_psannlm
from psann_jax.convert.run import read_run
from psann_jax.convert.safetensors_file import DEFAULT_NAME, SUFFIX, read_safetensors
from psann_jax.convert.weights import Weights, check_weights
from psann_jax.data.cache import cache_root
from psann_jax.data.downloads import local_file
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.runs.restore import refuse_checkpoint
from psann_jax.train.workdir import CHECKPOINTS, CONFIG
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import storage_errors
from psann_jax.utils.locations import BucketUrl, given_location

PICKLED = (".pt", ".pth", ".bin", ".ckpt")  # files of PyTorch
FOLDER_PREFIX = "hf:"  # before the path of a folder of `transformers`
_RUN_OPTIONS, _PSANNLM_OPTIONS = ("checkpoint", "ema_params"), ("n_heads", "positional_encoding", "max_length")


def read_weights(path: str | os.PathLike[str], tokenizer: Tokenizer | None = None, **options: Any) -> Weights:
    """Reads weights from a .safetensors file, a directory with one, a workdir, or a .pt file of psannlm or NGT.

    Args:
      path: the file or directory, or the URL of a run or a file in a bucket; "hf:DIRECTORY" is a folder of
        `transformers`.
      tokenizer: for weights without one.
      **options: for a workdir, `checkpoint`: the argument `step` of `read_run`, and `ema_params`. For a .pt file of
        psannlm, n_heads, positional_encoding and max_length, see `read_psannlm`.

    Raises:
      UserError: the path is missing, truncated or of another program, an option does not apply to it, or the tokenizer
        does not fit the model.
    """
    location = given_location(path, "path")
    with storage_errors(path, "read"):
        valid, read = _reader(location)
    for name in options:
        is_known = name in (*_RUN_OPTIONS, *_PSANNLM_OPTIONS)
        suggestion = "" if is_known else nearest(name, valid)
        problem = "has no effect for" if is_known else "unknown argument for"
        require(name in valid, name, f"{problem} {location}{suggestion}")
    weights = read(**{"step" if name == "checkpoint" else name: value for name, value in options.items()})
    if tokenizer is None:
        return weights
    require(weights.tokenizer is None, "tokenizer", f"{location} has its own; omit this one")
    return check_weights(dataclasses.replace(weights, tokenizer=tokenizer), location)


def folder_path(path: Path) -> Path | None:
    """Returns the path after "hf:", or None if a path does not begin with it.

    Raises:
      UserError: a URL follows.
    """
    text = str(path)
    if not text.startswith(FOLDER_PREFIX):
        return None
    folder = text.removeprefix(FOLDER_PREFIX)
    if re.match(r"\w+:/", folder):  # a path has lost one of the slashes of the URL
        raise UserError(f"{path}: must be {FOLDER_PREFIX}DIRECTORY, a path on a disk of this machine")
    return Path(folder).expanduser()


def names_run(location: Path | BucketUrl) -> bool:
    """Whether a path or URL is that of a run's workdir, not of a file with weights."""
    if isinstance(location, BucketUrl):
        return PurePosixPath(location.name).suffix not in (*PICKLED, SUFFIX)
    # A folder of transformers has a config.json, too. Weights that lie beside checkpoints do not hide these.
    is_run = (location / CHECKPOINTS).is_dir() or not (location / DEFAULT_NAME).exists()
    return (location / CONFIG).exists() and is_run


def _reader(location: Path | BucketUrl) -> tuple[tuple[str, ...], Callable[..., Weights]]:
    """Returns the names of the options that a path or URL accepts, and the function that reads it."""
    if names_run(location):
        return _RUN_OPTIONS, lambda **options: read_run(str(location), **options)
    path = location if isinstance(location, Path) else local_file(location, cache_root(""), "path")
    if (folder := folder_path(path)) is not None:
        return (), lambda: read_folder(folder)
    if path.suffix in PICKLED and is_ngt(path):
        return (), lambda: read_ngt(path)
    if path.suffix in PICKLED:
        return _PSANNLM_OPTIONS, lambda **options: read_psannlm(path, **options)
    if path.suffix == SUFFIX:
        return (), lambda: read_safetensors(path)
    if (path / DEFAULT_NAME).exists():
        return (), lambda: read_safetensors(path / DEFAULT_NAME)
    if path.exists():
        refuse_checkpoint(path)
    raise UserError(
        f"{path}: must be a {SUFFIX} file, a directory with {DEFAULT_NAME} or a run, {FOLDER_PREFIX}DIRECTORY, or a "
        ".pt file of psannlm or NGT"
    )
