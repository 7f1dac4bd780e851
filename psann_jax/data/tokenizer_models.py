"""Tokenizer models: plain text to token ids and back, without special tokens."""

import base64
import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

from psann_jax.config import SPECIAL_TOKENS
from psann_jax.data.special_tokens import hide_in_sentencepiece, hide_in_tokenizer_json
from psann_jax.data.tokenizer_json import BYTE_OF, byte_level_tokenizer, byte_name, sentencepiece_tokenizer
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra

_CHUNK = 1 << 16  # characters
_CHUNKS_AT_ONCE = 32
# Between printable ASCII characters, a single space or newline always starts a pre-token, so a text can be cut there.
_CUT = re.compile(r"(?<=[!-~])[ \n](?=[!-~])")


class Model(Protocol):
    """What each kind of tokenizer implements. The names of special tokens within a text are encoded as ordinary text.

    Attributes:
      kind: bpe, unigram, wordpiece, wordlevel, sentencepiece or bytes.
      size: ids are in [0, size).
      special_names: names of tokens that mark something and that no text should give.
      extends: whether more tokens only add to the end of a text, after the U+FFFD of an incomplete character.
      had_dropout: whether the payload has dropout of merges, which is switched off.
    """

    kind: str
    size: int
    special_names: frozenset[str]
    extends: bool
    had_dropout: bool

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of several texts."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids."""

    def find(self, token: str) -> int | None:
        """Returns the id of a token by its name, or None if there is no such token."""

    def piece(self, i: int) -> bytes:
        """Returns the UTF-8 of the text that one token stands for."""

    def payload(self) -> str:
        """Returns the model as a string, from which its class can be constructed again."""

    def tokenizer_json(self) -> dict[str, Any]:
        """Returns a tokenizer.json of the `tokenizers` library with the same ids, perhaps without special tokens."""

    def without(self, names: Collection[str]) -> "Model":
        """Returns a model with the same ids, for encoding only, in which no text gives the tokens of these names."""


class TokenizersModel:
    """A tokenizer of the Hugging Face `tokenizers` library: BPE, Unigram, WordPiece or WordLevel."""

    def __init__(self, payload: str):
        """Loads the content of a tokenizer.json file."""
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(payload)
        # A tokenizer.json may have settings for other uses: they would truncate texts, let a text contain an <eos>, or
        # encode it differently each time.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        model = self._tokenizer.model
        self.had_dropout = isinstance(model, tokenizers.models.BPE) and bool(model.dropout)
        if self.had_dropout:  # one of 0 stays: without it, the fingerprint would be another
            model.dropout = None
        self.kind = type(self._tokenizer.model).__name__.lower()
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not self.size:
            raise ValueError("it has no tokens")
        description = json.loads(self._tokenizer.to_str())  # the payload may lack entries that have defaults
        self._may_cut = _splits_at_spaces(description)
        self.extends = _extends(description["decoder"])
        self._byte_fallback = "ByteFallback" in json.dumps(description["decoder"])
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        self.special_names = frozenset(added[i].content for i in self._special)
        self._byte_level = "ByteLevel" in json.dumps([description["pre_tokenizer"], description["decoder"]])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of several texts, encoded in parallel."""
        if not self._may_cut or all(len(text) <= _CHUNK for text in texts):
            return self._encode(texts)
        return [self._encode_long(text) for text in texts]

    def _encode_long(self, text: str) -> list[int]:
        # The library needs over 100 bytes of memory for each byte of a text, and uses one thread per text.
        ids: list[int] = []
        parts = cut_text(text)
        while chunks := list(itertools.islice(parts, _CHUNKS_AT_ONCE)):
            ids += itertools.chain.from_iterable(self._encode(chunks))
        return ids

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        except Exception as e:  # tokenizers raises plain Exception, for example for an unknown word without <unk>
            raise UserError(f"data.tokenizer.path: the tokenizer cannot encode the text: {e}") from e

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids."""
        if not self._byte_fallback:
            return self._tokenizer.decode(list(ids), skip_special_tokens=True)
        names = (self._tokenizer.id_to_token(i) for i in ids if i not in self._special)
        return str(self._tokenizer.decoder.decode(_with_valid_bytes([name for name in names if name is not None])))

    def find(self, token: str) -> int | None:
        """Returns the id of a token by its name, or None if there is no such token."""
        return self._tokenizer.token_to_id(token)

    def piece(self, i: int) -> bytes:
        """Returns the UTF-8 of the text that one token stands for."""
        name = self._tokenizer.id_to_token(i) or ""
        if self._byte_level:
            return b"".join(BYTE_OF.get(c, c.encode()) for c in name)
        return _piece_bytes(name)

    def payload(self) -> str:
        """Returns the content of a tokenizer.json file."""
        return self._tokenizer.to_str()

    def tokenizer_json(self) -> dict[str, Any]:
        """See `Model`."""
        content: dict[str, Any] = json.loads(self.payload())
        return content

    def without(self, names: Collection[str]) -> "TokenizersModel":
        """Returns a model for encoding only, in which no text gives the tokens of these names."""
        return TokenizersModel(hide_in_tokenizer_json(self.payload(), names))


_BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")  # name of a byte-fallback token


def _piece_bytes(name: str) -> bytes:
    """Returns the UTF-8 of a token that is named as in sentencepiece, with U+2581 for a space."""
    byte = _BYTE_NAME.fullmatch(name)
    return bytes.fromhex(byte[1]) if byte else name.replace("\u2581", " ").encode()


def _with_valid_bytes(names: Sequence[str]) -> list[str]:
    """Replaces the byte-fallback tokens of each invalid or incomplete character by one token U+FFFD.

    The library decodes a run of such tokens as a whole: one that is incomplete would spoil all characters before it.
    """
    result: list[str] = []
    for is_byte, run in itertools.groupby(names, key=lambda name: _BYTE_NAME.fullmatch(name) is not None):
        if is_byte:
            text = b"".join(map(_piece_bytes, run)).decode(errors="replace")
            # A character U+FFFD that the bytes spell out looks the same, so it need not be told apart.
            run = itertools.chain.from_iterable(
                [c] if c == "\ufffd" else [f"<0x{byte:02X}>" for byte in c.encode()] for c in text
            )
        result += run
    return result


def _extends(decoder: dict[str, Any] | None) -> bool:
    """Returns whether a decoder only adds to the end of a text when it gets more tokens.

    Decoders work token by token until one joins all tokens. A later replacement, such as " ." by ".", may change text
    that earlier tokens have already completed.
    """
    if decoder is None:
        return True
    is_joined = False
    for step in decoder.get("decoders", [decoder]):
        one_character = step["type"] == "Replace" and len(step["pattern"].get("String", "")) == 1
        if is_joined and not one_character and step["type"] not in ("Fuse", "Strip"):
            return False
        is_joined |= step["type"] in ("Fuse", "ByteLevel")
    return True


def _splits_at_spaces(description: dict[str, Any]) -> bool:
    """Returns whether the parts of a text, cut between words, certainly have the same ids as the whole text."""
    pre = description["pre_tokenizer"] or {}
    byte_level = pre.get("type") == "ByteLevel" and pre.get("use_regex") and not pre.get("add_prefix_space")
    plain = description["normalizer"] is None and all(token["special"] for token in description["added_tokens"])
    return plain and bool(byte_level or pre.get("type") == "BertPreTokenizer")


def cut_text(text: str, size: int = _CHUNK) -> Iterator[str]:
    """Yields a text in parts of about `size` characters, cut only at the start of a word."""
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
    special_names: frozenset[str] = frozenset()  # control symbols never result from text
    extends = True
    had_dropout = False

    def __init__(self, proto: bytes):
        """Loads the content of a .model file."""
        self._proto = proto
        self._processor = sentencepiece_library().SentencePieceProcessor(model_proto=proto)
        self.size = int(self._processor.vocab_size())
        if not self.size:
            raise ValueError("it has no pieces")

    @classmethod
    def from_payload(cls, payload: str) -> "SentencePieceModel":
        """Constructs the model from the result of `payload`."""
        return cls(base64.b64decode(payload))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of several texts."""
        ids: list[list[int]] = self._processor.encode(list(texts), out_type=int)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids."""
        return str(self._processor.decode(list(ids)))

    def find(self, token: str) -> int | None:
        """Returns the id of a token by its name, or None if there is no such token."""
        i = int(self._processor.piece_to_id(token))
        return i if self._processor.id_to_piece(i) == token else None

    def piece(self, i: int) -> bytes:
        """Returns the UTF-8 of the text that one token stands for."""
        return _piece_bytes(str(self._processor.id_to_piece(i)))

    def payload(self) -> str:
        """Returns the content of the .model file in base64."""
        return base64.b64encode(self._proto).decode()

    def tokenizer_json(self) -> dict[str, Any]:
        """See `Model`."""
        return sentencepiece_tokenizer(self._proto)

    def without(self, names: Collection[str]) -> "SentencePieceModel":
        """Returns a model for encoding only, in which no text gives the pieces of these names."""
        return SentencePieceModel(hide_in_sentencepiece(self._proto, names))


def sentencepiece_library() -> Any:
    """Imports the optional `sentencepiece` module.

    Raises:
      UserError: it is not installed.
    """
    require_extra("data.tokenizer.kind: sentencepiece", "sentencepiece")
    import sentencepiece

    return sentencepiece


class ByteModel:
    """The bytes of UTF-8, with ids after those of the four special tokens."""

    kind = "bytes"
    size = len(SPECIAL_TOKENS) + 256
    special_names: frozenset[str] = frozenset()
    extends = True
    had_dropout = False

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of several texts."""
        return [[byte + len(SPECIAL_TOKENS) for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids."""
        return bytes(i - len(SPECIAL_TOKENS) for i in ids).decode("utf-8", errors="replace")

    def find(self, token: str) -> int | None:
        """Returns the id of a special token by its name, or None if there is no such token."""
        return {f"<{role}>": i for i, role in enumerate(SPECIAL_TOKENS)}.get(token)

    def piece(self, i: int) -> bytes:
        """Returns the byte of a token, or the name of a special token."""
        n = len(SPECIAL_TOKENS)
        return bytes([i - n]) if i >= n else f"<{SPECIAL_TOKENS[i]}>".encode()

    def payload(self) -> str:
        """Returns "": there is nothing to store."""
        return ""

    def tokenizer_json(self) -> dict[str, Any]:
        """See `Model`."""
        n = len(SPECIAL_TOKENS)
        names = {self.piece(i).decode() if i < n else byte_name(self.piece(i)): i for i in range(self.size)}
        return byte_level_tokenizer(names)

    def without(self, names: Collection[str]) -> "ByteModel":
        """Returns the model itself, in which no text gives a special token."""
        return self
