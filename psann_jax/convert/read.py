"""Weights from whatever a path names."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psann_jax.config import require
from psann_jax.config.io import nearest
from psann_jax.convert.ngt import is_ngt, read_ngt
from psann_jax.convert.psannlm import read_psannlm
from psann_jax.convert.run import read_run
from psann_jax.convert.safetensors_file import DEFAULT_NAME, SUFFIX, read_safetensors
from psann_jax.convert.weights import Weights, check_weights
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.train.workdir import CONFIG
from psann_jax.utils.errors import UserError

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_RUN_OPTIONS, _PSANNLM_OPTIONS = ("checkpoint",), ("n_heads", "positional_encoding", "max_length")


def read_weights(path: str | os.PathLike[str], tokenizer: Tokenizer | None = None, **options: Any) -> Weights:
    """The weights of a .safetensors file, a directory with one, a workdir, or a checkpoint of psannlm or NGT.

    Args:
      path: of one of these.
      tokenizer: for weights that come without one.
      **options: of a workdir checkpoint, as `read_run` has it as step; of a psannlm file n_heads,
        positional_encoding and max_length, see `read_psannlm`.

    Raises:
      UserError: there is no such thing, it is truncated or foreign, an option does not belong to it, or the tokenizer
        does not fit it.
    """
    path = Path(path).expanduser()
    valid, read = _reader(path)
    for name in options:
        other = name in (*_RUN_OPTIONS, *_PSANNLM_OPTIONS)
        suggestion = "" if other else nearest(name, valid)
        require(name in valid, name, f"{'has no effect for' if other else 'unknown argument for'} {path}{suggestion}")
    weights = read(**{"step" if name == "checkpoint" else name: value for name, value in options.items()})
    if tokenizer is None:
        return weights
    require(weights.tokenizer is None, "tokenizer", f"{path} comes with its own; leave it out")
    return check_weights(dataclasses.replace(weights, tokenizer=tokenizer), path)


def _reader(path: Path) -> tuple[tuple[str, ...], Callable[..., Weights]]:
    """The options that a path takes, and how its weights are read."""
    if path.suffix in _PICKLED and is_ngt(path):
        return (), lambda: read_ngt(path)
    if path.suffix in _PICKLED:
        return _PSANNLM_OPTIONS, lambda **options: read_psannlm(path, **options)
    if path.suffix == SUFFIX:
        return (), lambda: read_safetensors(path)
    if (path / DEFAULT_NAME).exists():
        return (), lambda: read_safetensors(path / DEFAULT_NAME)
    if (path / CONFIG).exists():
        return _RUN_OPTIONS, lambda **options: read_run(path, **options)
    raise UserError(
        f"{path}: is no {SUFFIX} file, no directory with {DEFAULT_NAME} or a run, and no .pt file of psannlm or NGT"
    )
