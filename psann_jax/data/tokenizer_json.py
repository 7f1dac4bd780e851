"""Descriptions of tokenizers in the format of the `tokenizers` library (tokenizer.json)."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from psann_jax.utils.errors import UserError


def _byte_characters() -> dict[str, bytes]:
    """Returns the characters that stand for bytes in byte-level tokenizers: the same if printable, else from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): bytes([b]) for b in printable} | {chr(0x100 + i): bytes([b]) for i, b in enumerate(others)}


BYTE_OF = _byte_characters()
_CHARACTER_OF = {byte[0]: character for character, byte in BYTE_OF.items()}


def byte_name(token: bytes) -> str:
    """Returns the name of a token of a byte-level tokenizer."""
    return "".join(_CHARACTER_OF[byte] for byte in token)


def byte_level_tokenizer(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, str]] = (), pattern: str | None = None
) -> dict[str, Any]:
    """Returns a BPE on the bytes of UTF-8.

    Args:
      vocabulary: ids by token, see `byte_name`.
      merges: pairs of tokens, the first to be merged first.
      pattern: of the parts into which a text is split first, a regular expression of Oniguruma. A part that is a token
        becomes that token. None does not split.
    """
    model = models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=pattern is not None)
    result = tokenizers.Tokenizer(model)
    split = [] if pattern is None else [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.pre_tokenizer = pre_tokenizers.Sequence([*split, bytes_only])
    result.decoder = decoders.ByteLevel()
    return _description(result)


def _description(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content


def sentencepiece_tokenizer(proto: bytes) -> dict[str, Any]:
    """Returns the tokenizer of a unigram model of sentencepiece, with the same ids.

    Raises:
      UserError: the model is not a unigram model, or has user-defined pieces.
    """
    from sentencepiece import sentencepiece_model_pb2

    module: Any = sentencepiece_model_pb2
    model = module.ModelProto.FromString(proto)
    spec = model.trainer_spec
    if spec.model_type != spec.UNIGRAM or any(piece.type == piece.USER_DEFINED for piece in model.pieces):
        raise UserError(
            "data.tokenizer.kind: of sentencepiece, only unigram models without user-defined pieces can be written as "
            "tokenizer.json"
        )
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == piece.UNKNOWN)
    result = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=spec.byte_fallback))
    rules = model.normalizer_spec
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(left=True, right=True), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(" ")] if rules.add_dummy_prefix else []
    result.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    ending = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
    result.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *ending]
    )
    marks = [piece.piece for piece in model.pieces if piece.type != piece.NORMAL]
    _keep_apart(result, marks)
    return _description(result)


def _keep_apart(tokenizer: tokenizers.Tokenizer, names: Collection[str]) -> None:
    """Cuts these names within a text behind their first character, so that no text gives the tokens of these names."""
    parts = (f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in sorted(names) if len(name) > 1)
    split = pre_tokenizers.Split(tokenizers.Regex("|".join(parts)), "merged_with_previous")
    later = [] if tokenizer.pre_tokenizer is None else [tokenizer.pre_tokenizer]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, *later])


def with_special_tokens(content: Mapping[str, Any], ids: Mapping[str, int], *, bos: str) -> dict[str, Any]:
    """Returns a tokenizer.json with these special tokens, that puts bos before each text.

    Args:
      content: of the tokenizer.
      ids: of the special tokens, by name; they are in the vocabulary.
      bos: name of the token before a text.
    """
    result = tokenizers.Tokenizer.from_str(json.dumps(content))
    result.no_truncation()
    result.no_padding()
    result.encode_special_tokens = True  # as `split_special_tokens` of `transformers`; not a part of the description
    result.add_special_tokens(list(ids))
    # Unknown words may be the unknown token, but its name is one of them.
    marks = {name: i for name, i in ids.items() if name != content["model"].get("unk_token")}
    found = [name for name, i in marks.items() if i in result.encode(name, add_special_tokens=False).ids]
    if found:
        _keep_apart(result, found)
    result.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids[bos])]
    )
    return _description(result)
