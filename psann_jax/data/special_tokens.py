"""Variants of tokenizers whose special tokens cannot result from text, and the check that such a variant exists."""

import json
import secrets
from collections.abc import Collection
from typing import Any

# One character for every byte that UTF-8 can begin or continue a character with, and some that few tokenizers know.
PROBES = [chr(i) for i in (*range(0x800), *range(0x800, 0xD800, 0x400), 0xE000, *range(0x10000, 0x110000, 0x10000))]


def hide_in_tokenizer_json(payload: str, names: Collection[str]) -> str:
    """Returns a tokenizer.json in which these tokens have the same ids, but names that no text contains.

    All other texts have the same ids as before. A text with the name of such a token is divided into other tokens.

    Args:
      payload: a tokenizer.json as the `tokenizers` library writes it.
      names: names of tokens.
    """
    content = json.loads(payload)
    hidden = {name: f"\ufdd0{secrets.token_hex(16)}" for name in names}  # nobody can guess them
    for token in content["added_tokens"]:
        if token["content"] in hidden:
            # With `encode_special_tokens`, the library does not look for special tokens in a text.
            token |= {"content": hidden[token["content"]], "special": True}
    model: dict[str, Any] = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(name, name): i for name, i in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden.get(name, name), score] for name, score in model["vocab"]]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [a, b]
            for a, b in model["merges"]
            if a not in hidden and b not in hidden and a + b.removeprefix(prefix) not in hidden
        ]
    if "unk_token" in model:
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    return json.dumps(content)


def hide_in_sentencepiece(proto: bytes, names: Collection[str]) -> bytes:
    """Returns a sentencepiece .model in which these pieces are control symbols, which never result from text.

    The piece for unknown characters stays what it is.
    """
    from sentencepiece import sentencepiece_model_pb2

    module: Any = sentencepiece_model_pb2
    model = module.ModelProto.FromString(proto)
    for piece in model.pieces:
        if piece.piece in names and piece.type != piece.UNKNOWN:
            piece.type = piece.CONTROL
    return bytes(model.SerializeToString())
