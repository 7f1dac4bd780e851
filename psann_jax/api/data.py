"""Text for the public API: `psannLMDataPrep`."""

import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psann_jax.api import keywords as settings
from psann_jax.config import DataConfig, TokenizerConfig, require, text_data
from psann_jax.config.io import parse
from psann_jax.data.cache import cache_root, get_or_make, key_of
from psann_jax.data.loader import TextData, load_text
from psann_jax.data.records import RECORD_SETTINGS, is_unicode
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.data.windows import Element, Windows
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import given_path

_NAMED_SOURCE = re.compile(r"(builtin|hf|tfds):\S+")
_LONGEST_NAME = 1000
# A path such as ./a, ~/a, /a/b or s3://a; a word with an extension; words with the extension of a file of text or data.
_FILE_NAME = re.compile(
    r"(\.{0,2}/|~\w*/|\w+://)\S+"
    r"|\S+\.[A-Za-z]\w{0,6}(\.\w{1,4})?"
    r"|.+\.(txt|text|md|jsonl?|csv|tsv|parquet|arrow|pdf|docx?|html?|xml|epub|py|ipynb|gz|xz|zst|bz2|zip)",
    re.IGNORECASE,
)


class psannLMDataPrep:
    """Training text and its tokenizer; the text is read and tokenised on first use."""

    def __init__(  # noqa: PLR0913 - keywords of users
        self,
        data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] | None = None,
        /,
        tokenizer: str | Tokenizer = "auto",
        tokenizer_model_path: str | os.PathLike[str] | None = None,
        max_length: int | None = None,
        pack_sequences: bool = True,
        val_split: float | None = None,
        seed: int = 1337,
        *,
        texts: Sequence[str] | None = None,
        sources: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] | None = None,
        **options: Any,
    ):
        """Finds the texts and checks the settings.

        Give one of `data`, `texts` and `sources`.

        Args:
          data: a list of texts, or a single source as a string, or paths as `pathlib.Path`. A list of strings of which
            one looks like a file name is refused: use `texts` or `sources`.
          tokenizer: auto, bpe, unigram, wordpiece, sentencepiece or bytes, trained on the texts; or the tokenizer of
            another psannLMDataPrep or of a model.
          tokenizer_model_path: a saved tokenizer: tokenizer.json or a sentencepiece .model.
          max_length: tokens per window; None chooses it by text and device. A length beyond the text is reduced, with
            a note.
          pack_sequences: whether to pack documents into windows; if False, every row is one padded document.
          val_split: fraction of the documents used for validation; None means 0.05.
          seed: of the random choice of these documents.
          texts: a list of texts, each one document.
          sources: a file, a glob or another source such as "builtin:python", or a list of these.
          **options: any other setting of `data` and `data.tokenizer`, named as in `psann_jax.config`.

        Raises:
          UserError: a keyword is unknown, a value is invalid, a file is missing or there is no text.
        """
        cache_dir = options.get("cache_dir") or ""
        require(isinstance(cache_dir, str), "cache_dir", f"is {cache_dir!r}, must be of type str")
        root = cache_root(cache_dir)
        found, n_bytes = _find(data, texts, sources, root)
        if isinstance(tokenizer, Tokenizer):
            require(tokenizer_model_path is None, "tokenizer_model_path", "cannot be used together with a tokenizer")
            tokenizer_model_path = keep_tokenizer(tokenizer, root)
            tokenizer = "auto"
        if val_split is None and not options.get("valid_sources"):
            val_split = 0.05
        given = {"seed": seed, "pack_sequences": pack_sequences, "val_split": val_split, "tokenizer": tokenizer}
        if tokenizer_model_path is not None:
            given["tokenizer_model_path"] = os.fspath(tokenizer_model_path)
        elif tokenizer != "bytes" and n_bytes is not None:
            given["vocab_size"] = settings.default_vocab_size(n_bytes)
        given |= {name: value for name, value in options.items() if value is not None or name not in given}
        self._max_length = max_length
        with settings.DATA.named():
            sections = settings.DATA.section({**given, "max_length": max_length})
            sections["data"]["sources"] = found
            sections["train"] = {"batch_tokens": max_length or DataConfig.max_length}
            self._config = text_data(parse(sections))

    @property
    def text(self) -> TextData:
        """The tokenised text.

        Raises:
          UserError: it cannot be read, or is too short to be split for validation.
        """
        return self._prepared[1]

    @property
    def config(self) -> DataConfig:
        """The `data` section of the config, with the final max_length."""
        return self._prepared[0]

    @functools.cached_property
    def _prepared(self) -> tuple[DataConfig, TextData]:
        with settings.DATA.named():
            shortest = dataclasses.replace(self._config, max_length=2)
            n_tokens = load_text(shortest).n_train_tokens
            length = self._max_length or settings.default_max_length(n_tokens)
            if self._config.pack and length > n_tokens - 1:
                length = n_tokens - 1
                if self._max_length:
                    settings.note(
                        f"max_length is {length}, not {self._max_length}: the text has {n_tokens} tokens for training"
                    )
            config = dataclasses.replace(self._config, max_length=length)
            return config, load_text(config)

    def validated_by(self, other: "psannLMDataPrep") -> DataConfig:
        """Returns data settings that use all of this text for training and all of `other` for validation.

        Both are encoded by the tokenizer of this text.

        Raises:
          UserError: the two texts are read with different settings.
        """
        mine, theirs = self.config, other._config
        for name in (*RECORD_SETTINGS, "document", "document_mask", "pack"):
            expected, given = getattr(mine, name), getattr(theirs, name)
            keyword = "pack_sequences" if name == "pack" else name
            require(expected == given, f"val_data.{keyword}", f"is {given!r}, must be {expected!r} as in train_data")
        length, known = other._max_length, (None, self._max_length, mine.max_length)
        fix = f"must be {mine.max_length} as in train_data; omit it"
        require(length in known, "val_data.max_length", f"is {length}, {fix}")
        return dataclasses.replace(
            mine,
            valid_sources=theirs.sources,
            valid_fraction=DataConfig.valid_fraction,
            tokenizer=TokenizerConfig(path=str(keep_tokenizer(self.tokenizer, cache_root(mine.cache_dir)))),
        )

    @property
    def dataset(self) -> "Windowed":
        """The training windows in the order of the text."""
        return Windowed(self.text.train_windows)

    @property
    def val_dataset(self) -> "Windowed":
        """The validation windows."""
        return Windowed([self.text.valid_windows])

    @property
    def max_length(self) -> int:
        """Tokens per window."""
        return self.config.max_length

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self.text.tokenizer

    @property
    def vocab_size(self) -> int:
        """Vocabulary size including special tokens."""
        return self.tokenizer.vocab_size

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return self.tokenizer.pad_id

    def __len__(self) -> int:
        """Number of training windows."""
        return len(self.dataset)


class Windowed(Sequence[Element]):
    """Windows as one sequence, each a dict of int32 arrays (max_length + 1,): tokens, segment_ids, positions."""

    def __init__(self, parts: Sequence[Windows]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        k = i + len(self) if i < 0 else i
        for part in self._parts:
            if 0 <= k < len(part):
                return part[k]
            k -= len(part)
        raise IndexError(f"window {i} of {len(self)}")


def keep_tokenizer(tokenizer: Tokenizer, root: Path) -> Path:
    """Saves a tokenizer in the cache and returns the path of its file."""
    key = key_of("given", tokenizer.fingerprint)
    name = "tokenizer.json"
    return get_or_make(root, f"tokenizer-{key}", lambda empty: tokenizer.save(empty / name)) / name


# --- texts in memory ------------------------------------------------------------------------------------


def _find(data: Any, texts: Any, sources: Any, root: Path) -> tuple[tuple[str, ...], int | None]:
    """Returns the data sources of the given texts, and their size in bytes if known without reading them.

    Texts in memory are written to a cache file named by their hash, so that a run on them can be resumed.
    """
    given = [name for name, value in (("data", data), ("texts", texts), ("sources", sources)) if value is not None]
    require(len(given) > 0, "texts", "is missing; give a list of texts, or sources=... for files")
    require(len(given) == 1, given[-1], f"cannot be used together with {given[0]}")
    if data is not None:
        texts, sources = (None, data) if _is_sources(data) else (data, None)
    if sources is not None:
        return _sources(sources)
    _check_texts(texts)
    return (str(_keep_texts(texts, root)),), sum(map(len, texts))


def _is_sources(data: Any) -> bool:
    """Returns whether the positional argument names sources; raises ConfigError if that is not certain."""
    if isinstance(data, str):
        known = _NAMED_SOURCE.fullmatch(data) or _looks_like_file(data)
        require(bool(known), "texts", f"there is no file {data[:80]!r}; for texts in memory give a list, texts=[...]")
        return True
    if isinstance(data, os.PathLike):
        return True
    _check_list("texts", data)
    if all(isinstance(item, os.PathLike) for item in data):
        return True
    for i, item in enumerate(data):
        is_path = isinstance(item, os.PathLike)
        require(
            not is_path and not (isinstance(item, str) and (_NAMED_SOURCE.fullmatch(item) or _looks_like_file(item))),
            f"texts[{i}]",
            f"{str(item)[:80]!r} {'is a path, but other items are not' if is_path else 'looks like a file name'}; "
            "use sources=[...] for files and texts=[...] for texts",
        )
    return False


def _looks_like_file(text: str) -> bool:
    """Returns whether a string names an existing file or directory, or looks like the name of one."""
    if "\n" in text or len(text) > _LONGEST_NAME:
        return False
    if _FILE_NAME.fullmatch(text):
        return True
    with contextlib.suppress(OSError, UserError):
        return given_path(text, "texts").exists()
    return False


def _check_list(name: str, items: Any) -> None:
    a_list = isinstance(items, Sequence) and not isinstance(items, str | bytes)
    require(a_list, name, f"is {type(items).__name__}, must be a list of texts; use sources=... for files")
    require(len(items) > 0, name, "is empty; give at least two texts")


def _check_texts(texts: Any) -> None:
    _check_list("texts", texts)
    for i, text in enumerate(texts):
        kind = type(text).__name__
        require(isinstance(text, str), f"texts[{i}]", f"is of type {kind}, must be a text; use sources=... for files")
        require(is_unicode(text), f"texts[{i}]", "has an unpaired surrogate, which is not a character")
    require(any(text.strip() for text in texts), "texts", "contain only white space")


def _sources(given: Any) -> tuple[tuple[str, ...], int | None]:
    paths = [given] if isinstance(given, str | os.PathLike) else given
    require(isinstance(paths, Sequence), "sources", f"is {type(given).__name__}, must be a path or a list of paths")
    require(len(paths) > 0, "sources", "is empty; name a file or another source")
    for i, path in enumerate(paths):
        kind = type(path).__name__
        require(isinstance(path, str | os.PathLike), f"sources[{i}]", f"is of type {kind}, must be a path")
    names = tuple(os.fspath(path) for path in paths)
    known = all(os.path.isfile(name) for name in names)
    return names, sum(os.path.getsize(name) for name in names) if known else None


def _keep_texts(texts: Sequence[str], root: Path) -> Path:
    content, name = "".join(json.dumps({"text": text}) + "\n" for text in texts), "texts.jsonl"

    def write(empty: Path) -> None:
        (empty / name).write_text(content)

    return get_or_make(root, f"texts-{key_of(content)}", write) / name
