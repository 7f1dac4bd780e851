"""Tokenizers: text to token ids and back, with special tokens, in one file format for all kinds."""

import codecs
import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from psann_jax.config import SPECIAL_TOKENS, ConfigError, TokenizerConfig
from psann_jax.config.checks import refuse_inactive
from psann_jax.data.files import read_errors
from psann_jax.data.special_tokens import PROBES
from psann_jax.data.tiktoken_file import SUFFIX, read_tiktoken
from psann_jax.data.tokenizer_json import with_special_tokens
from psann_jax.data.tokenizer_models import ByteModel, Model, SentencePieceModel, TokenizersModel
from psann_jax.data.tokenizer_source import find_tokenizer
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write

# Names of the special tokens in widely used tokenizers, tried if the setting has its default value.
COMMON_NAMES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>"),
    "bos": ("<bos>", "<s>", "[CLS]", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("<eos>", "</s>", "[SEP]", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>"),
    "unk": ("<unk>", "[UNK]", "<|unk|>"),
}
_FORMAT = "psann_jax tokenizer 1"


class Tokenizer:
    """A tokenizer with its special tokens.

    `encode` adds no special tokens and encodes their names within a text as ordinary text, whatever the file of a
    prebuilt tokenizer says; `decode` skips special tokens. For the kinds bpe, unigram and bytes trained here,
    ``decode(encode(text)) == text`` for every text.

    Attributes:
      kind: bpe, unigram, wordpiece, wordlevel, sentencepiece or bytes.
      vocab_size: ids are in [0, vocab_size).
      extends: whether more tokens only add to the end of a decoded text, after the U+FFFD of an incomplete character.
      had_dropout: whether the file has dropout of merges, which is switched off, so that a text has one encoding.
      pad_id, bos_id, eos_id: ids of special tokens; if a prebuilt tokenizer has no pad or bos, the id of its eos.
      unk_id: id of the unknown token, or None if a prebuilt tokenizer has none.
    """

    def __init__(self, model: Model, names: Mapping[str, str]):
        """Looks up the special tokens.

        Args:
          model: the tokenizer without special tokens.
          names: "pad", "bos", "eos" and optionally "unk" -> the name of that token in the model.

        Raises:
          ValueError: the model has no token of one of these names.
        """
        ids = {role: model.find(name) for role, name in names.items()}
        if any(i is None for i in ids.values()):
            raise ValueError(f"the model lacks some of the special tokens {dict(names)}")
        self._model = model
        self._names = dict(names)
        self.kind = model.kind
        self.vocab_size = model.size
        self.extends = model.extends
        self.had_dropout = model.had_dropout
        self.pad_id: int = ids["pad"] or 0
        self.bos_id: int = ids["bos"] or 0
        self.eos_id: int = ids["eos"] or 0
        self.unk_id: int | None = ids.get("unk")
        self._special = {i for i in ids.values() if i is not None}
        self._hidden = {*self._names.values(), *model.special_names}
        hidden_ids = (model.find(name) for name in self._hidden)
        # Unknown characters are encoded as the unknown token, its name is not.
        self._never = {i for i in hidden_ids if i is not None and i != self.unk_id}
        self._never |= {self.pad_id, self.bos_id, self.eos_id}

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without special tokens.

        Raises:
          UserError: a prebuilt tokenizer cannot encode this text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of several texts, encoded in parallel if the kind supports it.

        Raises:
          UserError: a prebuilt tokenizer cannot encode one of the texts.
        """
        ids = self._model.encode_batch(texts)
        special = [i for i, text in enumerate(texts) if self._has_special(text, ids[i])]
        if special:
            for i, without in zip(special, self._guarded.encode_batch([texts[i] for i in special]), strict=True):
                if not self._never.isdisjoint(without):
                    raise UserError(
                        f"data.tokenizer.path: the tokenizer makes {' or '.join(sorted(self._hidden))} out of the text "
                        f"{texts[i][:40]!r}; choose other special tokens or another tokenizer"
                    )
                ids[i] = without
        return ids

    def _has_special(self, text: str, ids: list[int]) -> bool:
        return not self._never.isdisjoint(ids) or ("unk" in self._names and self._names["unk"] in text)

    @functools.cached_property
    def _guarded(self) -> Model:
        """A model with the same ids, except that text never gives a special token."""
        return self._model.without(self._hidden)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids without special tokens; incomplete characters become U+FFFD.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        plain = [int(i) for i in ids if int(i) not in self._special]
        for i in plain:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the tokenizer's {self.vocab_size} ids")
        return self._model.decode(plain)

    def sizes(self) -> np.ndarray:
        """Returns the bytes of UTF-8 that each token stands for, (vocab_size,); 0 for special tokens."""
        special = self._special
        return np.array([0 if i in special else len(self.piece(i)) for i in range(self.vocab_size)], np.int64)

    def piece(self, i: int) -> bytes:
        """Returns the UTF-8 of the text that one token stands for, or the name of a special token.

        A token may stand for a part of a character.

        Raises:
          ValueError: the id is outside the vocabulary.
        """
        if not 0 <= i < self.vocab_size:
            raise ValueError(f"token id {i} is outside the tokenizer's {self.vocab_size} ids")
        return self._model.piece(i)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that `decode` skips."""
        return frozenset(self._special)

    @property
    def names(self) -> dict[str, str]:
        """Names of the special tokens by role: pad, bos, eos and, if there is one, unk."""
        return dict(self._names)

    def tokenizer_json(self) -> dict[str, Any]:
        """Returns a tokenizer.json of the `tokenizers` library with the same ids, which puts bos before a text.

        Raises:
          UserError: the library has no tokenizer with these ids.
        """
        ids = {name: self._model.find(name) or 0 for name in self._names.values()}
        return with_special_tokens(self._model.tokenizer_json(), ids, bos=self._names["bos"])

    def to_bytes(self) -> bytes:
        """Serialises the tokenizer for `from_bytes`."""
        content = {"format": _FORMAT, "kind": self.kind, "names": self._names, "model": self._model.payload()}
        return json.dumps(content, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Returns the tokenizer that `to_bytes` serialised.

        Raises:
          ValueError: `data` is not the result of `to_bytes`.
        """
        try:
            content = json.loads(data)
            if not isinstance(content, dict) or content.get("format") != _FORMAT:
                raise ValueError("not a psann_jax tokenizer")
            make: dict[str, Callable[[str], Model]] = {
                "bytes": lambda _: ByteModel(),
                "sentencepiece": SentencePieceModel.from_payload,
            }
            return cls(make.get(content["kind"], TokenizersModel)(content["model"]), content["names"])
        except UserError:
            raise
        except Exception as e:  # tokenizers raises plain Exception
            raise ValueError(_reason(e)) from e

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the ids of a text."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `load` and the setting `data.tokenizer.path` accept.

        Raises:
          OSError: the file cannot be written.
        """
        atomic_write(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str], config: TokenizerConfig | None = None) -> Self:
        """Loads a saved tokenizer, a tokenizer.json of `tokenizers`, a .model of sentencepiece or a .tiktoken file.

        Args:
          path: the file, or what `find_tokenizer` accepts: a folder, or a name on the Hugging Face Hub.
          config: names of the special tokens and the expected kind; None: the defaults.

        Raises:
          UserError: the file cannot be read, has another format or kind, or lacks a special token.
        """
        path, config = find_tokenizer(path, config or TokenizerConfig())
        with read_errors(path):
            data = path.read_bytes()
        tokenizer = cls._read(path, data, config)
        if config.kind not in ("auto", tokenizer.kind):
            raise ConfigError(f"data.tokenizer.kind: is {config.kind}, but {path} is of kind {tokenizer.kind}")
        return tokenizer

    @classmethod
    def _read(cls, path: Path, data: bytes, config: TokenizerConfig) -> Self:
        known: dict[str, str] = {}
        data = data.removeprefix(codecs.BOM_UTF8)
        try:
            if not data:
                raise ValueError("the file is empty")
            if path.suffix == SUFFIX:
                model: Model = TokenizersModel(json.dumps(read_tiktoken(path, data, config)))
            elif data.lstrip()[:1] != b"{":
                model = SentencePieceModel(data)
            elif json.loads(data).get("format") == _FORMAT:
                saved = cls.from_bytes(data)
                model, known = saved._model, saved._names
            else:
                model = TokenizersModel(data.decode())
        except UserError:
            raise
        except Exception as e:  # tokenizers raises plain Exception
            raise UserError(
                f"data.tokenizer.path: {path} is neither a tokenizer.json nor a sentencepiece .model: {_reason(e)}"
            ) from e
        names = _find_names(model, config, known, path)
        _refuse_ordinary_specials(model, names, path)
        return cls(model, names)


def _reason(e: Exception) -> str:
    return f"it has no {e}" if isinstance(e, KeyError) else str(e).partition("\n")[0] or type(e).__name__


def _refuse_ordinary_specials(model: Model, names: Mapping[str, str], path: Path) -> None:
    """Raises ConfigError if a character of ordinary text, or one that is unknown, becomes pad, bos or eos."""
    found: dict[int, str] = {}
    for character in PROBES:
        with contextlib.suppress(UserError):  # a tokenizer need not know every character
            found |= dict.fromkeys(model.encode_batch([character])[0], character)
    for role in ("eos", "bos", "pad"):
        i = model.find(names[role])
        if i in found:
            raise ConfigError(
                f"data.tokenizer.{role}_token: {path} encodes ordinary text such as {found[i]!r} as {names[role]!r}; "
                "choose a token that only marks, or another tokenizer"
            )


def _find_names(model: Model, config: TokenizerConfig, known: Mapping[str, str], path: Path) -> dict[str, str]:
    """Returns the names of the special tokens: those that are configured, else those that are known, else common ones.

    A name counts as configured if it differs from the default. `known` holds the names in a file that was saved here.
    """
    default, names = TokenizerConfig(), {}
    for role, common in COMMON_NAMES.items():
        configured = getattr(config, f"{role}_token")
        is_configured = configured != getattr(default, f"{role}_token")
        candidates = (configured,) if is_configured else (known[role],) if role in known else common
        found = next((name for name in candidates if model.find(name) is not None), None)
        if found is not None:
            names[role] = found
        elif is_configured or role == "eos":
            raise ConfigError(
                f"data.tokenizer.{role}_token: {path} has no token {' or '.join(candidates)}; "
                f"set it to the name of its {role} token"
            )
    return {"pad": names["eos"], "bos": names["eos"], **names}


def byte_tokenizer() -> Tokenizer:
    """Returns the tokenizer of kind `bytes`: ids 0 to 3 are pad, bos, eos and unk, then the 256 bytes."""
    return Tokenizer(ByteModel(), {role: f"<{role}>" for role in SPECIAL_TOKENS})


def check_settings(config: TokenizerConfig) -> None:
    """Raises ConfigError for settings that have no effect with the kind of tokenizer."""
    inactive = {
        "bytes": [f"{role}_token" for role in SPECIAL_TOKENS],
        "unigram": ["min_frequency"],
        "sentencepiece": ["min_frequency"],
    }
    if config.kind in inactive and not config.path:
        refuse_inactive(config, "data.tokenizer", f"with kind {config.kind}", *inactive[config.kind])
