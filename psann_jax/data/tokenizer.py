"""Text to token ids and back, the same way for every kind of tokenizer."""

import base64
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from psann_jax.config import SPECIAL_TOKENS, ConfigError, TokenizerConfig, require
from psann_jax.data.files import reading
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra

# Names that widely used tokenizers give to the special tokens, looked up where the configured default is not there.
COMMON_NAMES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>"),
    "bos": ("<bos>", "<s>", "[CLS]", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("<eos>", "</s>", "[SEP]", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>"),
    "unk": ("<unk>", "[UNK]", "<|unk|>"),
}
_FORMAT = "psann_jax tokenizer 1"
_CHUNK = 1 << 16
_CHUNKS_AT_ONCE = 32
# Between printable ASCII, a single space or line end always begins a pre-token, so a text may be cut there.
_CUT = re.compile(r"(?<=[!-~])[ \n](?=[!-~])")


class Model(Protocol):
    """What a kind of tokenizer must do; ids are plain, special tokens are never made from text."""

    kind: str
    size: int

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def find(self, token: str) -> int | None: ...

    def piece(self, i: int) -> bytes: ...

    def payload(self) -> str: ...


class Tokenizer:
    """A tokenizer with its special tokens.

    `encode` adds no special tokens and takes their names within a text for ordinary text; `decode` leaves special
    tokens out. For the kinds bpe, unigram and bytes trained here, ``decode(encode(text)) == text`` for every text.

    Attributes:
      kind: bpe, unigram, wordpiece, wordlevel, sentencepiece or bytes.
      vocab_size: ids are in [0, vocab_size).
      pad_id, bos_id, eos_id: special ids; a prebuilt tokenizer without pad or bos has its eos there.
      unk_id: None for a prebuilt tokenizer that has none.
    """

    def __init__(self, model: Model, names: Mapping[str, str]):
        """Args:
        model: the tokenizer without special tokens.
        names: "pad", "bos", "eos" and, if it has one, "unk" -> the token's name in the model.
        """
        ids = {role: model.find(name) for role, name in names.items()}
        if any(i is None for i in ids.values()):
            raise ValueError(f"the model has not all of the special tokens {dict(names)}")
        self._model = model
        self._names = dict(names)
        self.kind = model.kind
        self.vocab_size = model.size
        self.pad_id: int = ids["pad"] or 0
        self.bos_id: int = ids["bos"] or 0
        self.eos_id: int = ids["eos"] or 0
        self.unk_id: int | None = ids.get("unk")
        self._special = {i for i in ids.values() if i is not None}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return self._model.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, encoded in parallel where the kind can."""
        return self._model.encode_batch(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens; cut-off characters come out as U+FFFD.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        plain = [int(i) for i in ids if int(i) not in self._special]
        for i in plain:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the tokenizer's {self.vocab_size} ids")
        return self._model.decode(plain)

    def piece(self, i: int) -> bytes:
        """The UTF-8 of the text that one token stands for, maybe with a part of a character; a special token's name.

        Raises:
          ValueError: the id is outside the vocabulary.
        """
        if not 0 <= i < self.vocab_size:
            raise ValueError(f"token id {i} is outside the tokenizer's {self.vocab_size} ids")
        return self._model.piece(i)

    def to_bytes(self) -> bytes:
        """Everything needed to make the same tokenizer again, see `from_bytes`."""
        content = {"format": _FORMAT, "kind": self.kind, "names": self._names, "model": self._model.payload()}
        return json.dumps(content, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The tokenizer that `to_bytes` described.

        Raises:
          ValueError: `data` is something else.
        """
        content = json.loads(data)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError("not a psann_jax tokenizer")
        make: dict[str, Callable[[str], Model]] = {"bytes": lambda _: ByteModel(), "sentencepiece": _from_base64}
        return cls(make.get(content["kind"], TokenizersModel)(content["model"]), content["names"])

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the ids of a text."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `load` and `data.tokenizer.path` take."""
        path = Path(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(self.to_bytes())
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], config: TokenizerConfig | None = None) -> Self:
        """A tokenizer from a file: saved here, a tokenizer.json of `tokenizers` or a sentencepiece .model.

        Args:
          path: the file.
          config: gives the names of the special tokens and the expected kind.

        Raises:
          UserError: no such file, another format or kind, or the file has no such special tokens.
        """
        path, config = Path(path).expanduser(), config or TokenizerConfig()
        with reading(path):
            data = path.read_bytes()
        tokenizer = cls._read(path, data, config)
        if config.kind not in ("auto", tokenizer.kind):
            raise ConfigError(f"data.tokenizer.kind: is {config.kind}, but {path} is of kind {tokenizer.kind}")
        return tokenizer

    @classmethod
    def _read(cls, path: Path, data: bytes, config: TokenizerConfig) -> Self:
        known: dict[str, str] = {}
        try:
            if not data:
                raise ValueError("the file is empty")
            if data.lstrip()[:1] != b"{":
                model: Model = SentencePieceModel(data)
            elif json.loads(data).get("format") == _FORMAT:
                saved = cls.from_bytes(data)
                model, known = saved._model, saved._names
            else:
                model = TokenizersModel(data.decode())
        except UserError:
            raise
        except Exception as e:  # tokenizers and sentencepiece raise plain Exception and RuntimeError
            reason = str(e).partition("\n")[0]
            raise UserError(
                f"data.tokenizer.path: {path} is neither a tokenizer.json nor a sentencepiece .model: {reason}"
            ) from e
        return cls(model, _find_names(model, config, known, path))


def _find_names(model: Model, config: TokenizerConfig, known: Mapping[str, str], path: Path) -> dict[str, str]:
    """The special tokens' names: the configured one if it is not the default, the known one or a common one."""
    default, names = TokenizerConfig(), {}
    for role, common in COMMON_NAMES.items():
        configured = getattr(config, f"{role}_token")
        given = configured != getattr(default, f"{role}_token")
        candidates = (configured,) if given else (known[role],) if role in known else common
        found = next((name for name in candidates if model.find(name) is not None), None)
        if found is not None:
            names[role] = found
        elif given or role == "eos":
            raise ConfigError(
                f"data.tokenizer.{role}_token: {path} has no token {' or '.join(candidates)}; "
                f"name the one that it uses for {role}"
            )
    return {"pad": names["eos"], "bos": names["eos"], **names}


class TokenizersModel:
    """A tokenizer of the Hugging Face `tokenizers` library: BPE, Unigram, WordPiece or WordLevel."""

    def __init__(self, payload: str):
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(payload)
        # A tokenizer.json may carry settings for other uses: these would cut texts off, or let a text forge an <eos>.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.kind = type(self._tokenizer.model).__name__.lower()
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        description = json.loads(payload)
        self._may_cut = _cuts_at_spaces(description)
        self._byte_level = "ByteLevel" in json.dumps([description["pre_tokenizer"], description["decoder"]])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._may_cut or all(len(text) <= _CHUNK for text in texts):
            return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [self._encode_long(text) for text in texts]

    def _encode_long(self, text: str) -> list[int]:
        # The library takes over 100 bytes of memory for each byte of a text, and one thread for each text.
        ids: list[int] = []
        parts = cut_text(text)
        while chunks := list(itertools.islice(parts, _CHUNKS_AT_ONCE)):
            for encoding in self._tokenizer.encode_batch_fast(chunks, add_special_tokens=False):
                ids += encoding.ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def find(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def piece(self, i: int) -> bytes:
        name = self._tokenizer.id_to_token(i) or ""
        if self._byte_level:
            return b"".join(_BYTE_OF.get(c, c.encode()) for c in name)
        return _piece_bytes(name)

    def payload(self) -> str:
        return self._tokenizer.to_str()


def _byte_signs() -> dict[str, bytes]:
    """The characters that byte-level tokenizers write bytes with: their own if printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): bytes([b]) for b in printable} | {chr(0x100 + i): bytes([b]) for i, b in enumerate(others)}


_BYTE_OF = _byte_signs()
_BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")  # of a token for one byte, where characters are the rule


def _piece_bytes(name: str) -> bytes:
    """The UTF-8 of a token named as sentencepiece does it, with U+2581 for a space."""
    byte = _BYTE_NAME.fullmatch(name)
    return bytes.fromhex(byte[1]) if byte else name.replace("\u2581", " ").encode()


def _cuts_at_spaces(description: dict[str, Any]) -> bool:
    """Whether the encoding of a text is that of its parts between words, for certain."""
    pre = description["pre_tokenizer"] or {}
    byte_level = pre.get("type") == "ByteLevel" and pre.get("use_regex") and not pre.get("add_prefix_space")
    plain = description["normalizer"] is None and all(token["special"] for token in description["added_tokens"])
    return plain and bool(byte_level or pre.get("type") == "BertPreTokenizer")


def cut_text(text: str, size: int = _CHUNK) -> Iterator[str]:
    """A text in parts of about `size` characters, cut only where a word begins."""
    start = 0
    while len(text) - start > size:
        cut = _CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


class SentencePieceModel:
    """A model of the `sentencepiece` library."""

    kind = "sentencepiece"

    def __init__(self, proto: bytes):
        self._proto = proto
        self._processor = sentencepiece_library().SentencePieceProcessor(model_proto=proto)
        self.size = int(self._processor.vocab_size())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(list(texts), out_type=int)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode(list(ids)))

    def find(self, token: str) -> int | None:
        i = int(self._processor.piece_to_id(token))
        return i if self._processor.id_to_piece(i) == token else None

    def piece(self, i: int) -> bytes:
        return _piece_bytes(str(self._processor.id_to_piece(i)))

    def payload(self) -> str:
        return base64.b64encode(self._proto).decode()


def _from_base64(payload: str) -> Model:
    return SentencePieceModel(base64.b64decode(payload))


def sentencepiece_library() -> Any:
    """Imports the optional `sentencepiece` module.

    Raises:
      UserError: it is not installed.
    """
    require_extra("data.tokenizer.kind: sentencepiece", "sentencepiece")
    import sentencepiece

    return sentencepiece


class ByteModel:
    """The bytes of the UTF-8 text, after four special tokens."""

    kind = "bytes"
    size = len(SPECIAL_TOKENS) + 256

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + len(SPECIAL_TOKENS) for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - len(SPECIAL_TOKENS) for i in ids).decode("utf-8", errors="replace")

    def find(self, token: str) -> int | None:
        return {f"<{role}>": i for i, role in enumerate(SPECIAL_TOKENS)}.get(token)

    def piece(self, i: int) -> bytes:
        n = len(SPECIAL_TOKENS)
        return bytes([i - n]) if i >= n else f"<{SPECIAL_TOKENS[i]}>".encode()

    def payload(self) -> str:
        return ""


def byte_tokenizer() -> Tokenizer:
    """The tokenizer of kind `bytes`: ids 0 to 3 are pad, bos, eos and unk, then the 256 bytes."""
    return Tokenizer(ByteModel(), {role: f"<{role}>" for role in SPECIAL_TOKENS})


def check_settings(config: TokenizerConfig) -> None:
    """Raises ConfigError for settings that would do nothing with the kind of tokenizer."""
    default = TokenizerConfig()
    inactive = {
        "bytes": [f"{role}_token" for role in SPECIAL_TOKENS],
        "unigram": ["min_frequency"],
        "sentencepiece": ["min_frequency"],
    }
    for name in [] if config.path else inactive.get(config.kind, []):
        same = getattr(config, name) == getattr(default, name)
        require(same, f"data.tokenizer.{name}", f"has no effect with kind {config.kind}; leave it at its default")
