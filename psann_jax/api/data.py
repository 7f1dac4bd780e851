"""Text for the public API: `psannLMDataPrep`."""

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
from psann_jax.data.files import TEXT_FORMATS
from psann_jax.data.loader import TextData, load_text
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.data.windows import Element, Windows

_NAMED_SOURCE = re.compile(r"(builtin|hf|tfds):\S+")
_EXTENSIONS = tuple(f + c for f in (*TEXT_FORMATS, ".parquet") for c in ("", ".gz", ".xz", ".zst"))
_FILE_NAME = re.compile(rf"\S+({'|'.join(map(re.escape, _EXTENSIONS))})")


class psannLMDataPrep:
    """Training text and its tokenizer; the text is read and tokenised on first use."""

    def __init__(
        self,
        texts: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
        tokenizer: str | Tokenizer = "auto",
        tokenizer_model_path: str | os.PathLike[str] | None = None,
        max_length: int | None = None,
        pack_sequences: bool = True,
        val_split: float | None = None,
        seed: int = 1337,
        **options: Any,
    ):
        """Finds the texts and checks the settings.

        Args:
          texts: a list of texts, each one document; or a file, a glob or another source such as "builtin:python", or a
            list of these.
          tokenizer: auto, bpe, unigram, wordpiece, sentencepiece or bytes, trained on the texts; or the tokenizer of
            another psannLMDataPrep or of a model.
          tokenizer_model_path: a saved tokenizer: tokenizer.json or a sentencepiece .model.
          max_length: tokens per window; None chooses it by text and device. A length beyond the text is reduced, with
            a note.
          pack_sequences: whether to pack documents into windows; if False, every row is one padded document.
          val_split: fraction of the documents used for validation; None means 0.05.
          seed: of the random choice of these documents.
          **options: any other setting of `data` and `data.tokenizer`, named as in `psann_jax.config`.

        Raises:
          UserError: a keyword is unknown, a value is invalid, a file is missing or there is no text.
        """
        root = cache_root(options.get("cache_dir") or "")
        sources, n_bytes = _find(texts, root)
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
            sections["data"]["sources"] = sources
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
        for name in ("text_field", "document"):
            expected, given = getattr(mine, name), getattr(theirs, name)
            require(expected == given, f"val_data.{name}", f"is {given!r}, must be {expected!r} as in train_data")
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


def _find(texts: Any, root: Path) -> tuple[tuple[str, ...], int | None]:
    """Returns the data sources of the given texts, and their size in bytes if known without reading them.

    Texts in memory are written to a cache file named by their hash, so that a run on them can be resumed.
    """
    if isinstance(texts, str | os.PathLike):
        known = _is_source(texts) or os.path.exists(texts)
        require(known, "texts", f"there is no file {str(texts)[:80]!r}; for texts in memory pass a list")
        return _sources([texts])
    require(isinstance(texts, Sequence), "texts", f"is {type(texts).__name__}, must be a list of texts or paths")
    require(len(texts) > 0, "texts", "is empty; give at least two texts")
    for i, text in enumerate(texts):
        kind = type(text).__name__
        require(isinstance(text, str | os.PathLike), f"texts[{i}]", f"is of type {kind}, must be a text or a path")
    are_sources = [_is_source(text) for text in texts]
    if all(are_sources):
        return _sources(texts)
    require(
        not any(are_sources),
        f"texts[{are_sources.index(True)}]" if any(are_sources) else "texts",
        "is a path, but other items are texts; give either paths or texts",
    )
    require(any(text.strip() for text in texts), "texts", "contain only white space")
    return (str(_keep_texts(texts, root)),), sum(map(len, texts))


def _sources(paths: Sequence[str | os.PathLike[str]]) -> tuple[tuple[str, ...], int | None]:
    sources = tuple(os.fspath(path) for path in paths)
    known = all(os.path.isfile(source) for source in sources)
    return sources, sum(os.path.getsize(source) for source in sources) if known else None


def _is_source(text: str | os.PathLike[str]) -> bool:
    """Whether a string names a source; also true for the name of a missing file, so that an error reports it."""
    if isinstance(text, os.PathLike) or _NAMED_SOURCE.fullmatch(text) or _FILE_NAME.fullmatch(text):
        return True
    return "\n" not in text and text.endswith(_EXTENSIONS) and os.path.exists(os.path.expanduser(text))


def _keep_texts(texts: Sequence[str], root: Path) -> Path:
    content, name = "".join(json.dumps({"text": text}) + "\n" for text in texts), "texts.jsonl"

    def write(empty: Path) -> None:
        (empty / name).write_text(content)

    return get_or_make(root, f"texts-{key_of(content)}", write) / name
