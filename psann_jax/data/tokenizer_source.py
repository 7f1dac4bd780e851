"""Finds the files of a tokenizer: a file, a folder, or a repository of the Hugging Face Hub."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psann_jax.config import SPECIAL_TOKENS, TokenizerConfig
from psann_jax.utils.errors import UserError, one_line
from psann_jax.utils.files import given_path, read_json, storage_errors

_FIELD = "data.tokenizer.path"
_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")  # the first that is there
_NAMES = "tokenizer_config.json"  # has the names of the special tokens
_REPOSITORY = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w-][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
_SUFFIXES = (".json", ".model", ".tiktoken", ".txt")  # of a file, not of a repository

# The path of a file by its name, or None if there is no such file.
_Find = Callable[[str], Path | None]


def find_tokenizer(path: str | os.PathLike[str], config: TokenizerConfig) -> tuple[Path, TokenizerConfig]:
    """Returns the file of a tokenizer, and the config with the special tokens that a folder names for it.

    Args:
      path: of a file; of a folder; or ORGANISATION/NAME or NAME, perhaps with @REVISION, of a repository in the cache
        of `huggingface_hub` or on the Hub.
      config: its names of special tokens, if they are not the defaults, take precedence over those in the folder.

    Raises:
      UserError: there is no such file, folder or repository, or it has no tokenizer.
    """
    file = given_path(path, _FIELD)
    with storage_errors(file, "read"):
        is_folder, exists = file.is_dir(), file.exists()
    match = _REPOSITORY.fullmatch(str(path))
    if is_folder:
        return _choose(lambda name: file / name if (file / name).is_file() else None, file, config)
    if exists or match is None or file.suffix in _SUFFIXES:
        return file, config
    return _choose(_repository(match["name"], match["revision"]), file, config)


def _choose(find: _Find, source: Path, config: TokenizerConfig) -> tuple[Path, TokenizerConfig]:
    file = next((found for name in _FILES if (found := find(name)) is not None), None)
    if file is None:
        raise UserError(f"{_FIELD}: {source} has none of {', '.join(_FILES)}")
    names = find(_NAMES)
    return file, config if names is None else _with_names(read_json(names), config)


def _with_names(content: dict[str, Any], config: TokenizerConfig) -> TokenizerConfig:
    """Returns a config with the special tokens in a tokenizer_config.json, where it has the default names."""
    default = TokenizerConfig()
    names: dict[str, Any] = {}
    for role in SPECIAL_TOKENS:
        field = f"{role}_token"
        token = content.get(field)
        token = token.get("content") if isinstance(token, dict) else token
        # GPT-2 names its eos as unk, too, although it knows all text.
        is_own = role != "unk" or token not in names.values()
        if isinstance(token, str) and token and is_own and getattr(config, field) == getattr(default, field):
            names[field] = token
    return dataclasses.replace(config, **names)


def _repository(name: str, revision: str | None) -> _Find:
    """Returns a function that finds files of a repository in the cache, and otherwise downloads them.

    Raises:
      UserError: from the function, if the repository is in neither, or the Hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    def find(file: str) -> Path | None:
        cached = huggingface_hub.try_to_load_from_cache(name, file, revision=revision)
        if cached is not None:  # a path, or a mark that the repository has no such file
            return Path(cached) if isinstance(cached, str) else None
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # not a line for each retry
        try:
            return Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
        except errors.EntryNotFoundError as error:
            if not isinstance(error, errors.LocalEntryNotFoundError):
                return None
            reason: Exception = error
        except (OSError, ValueError) as error:  # errors of the Hub and of the connection are OSErrors
            reason = error
        finally:
            logging.set_verbosity(verbosity)
        raise UserError(
            f"{_FIELD}: {name} is not a file or folder, is not in the cache of Hugging Face, and cannot be downloaded: "
            f"{one_line(reason)}"
        ) from reason

    return find
