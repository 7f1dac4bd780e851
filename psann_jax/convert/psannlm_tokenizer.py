"""Converts the tokenizers in psannlm 2.0's files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psann_jax.config import SPECIAL_TOKENS
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.data.tokenizer_models import SentencePieceModel, TokenizersModel, sentencepiece_library
from psann_jax.utils.errors import UserError

# psannlm's special tokens, ids 0 to 3, if they are not part of the tokenizer's own vocabulary.
_NAMES = {role: f"<|psannlm {role}|>" for role in SPECIAL_TOKENS}


def tokenizer_from_state(state: Mapping[str, Any], path: Path) -> Tokenizer:
    """Converts a tokenizer of psannlm to one with the same ids.

    Args:
      state: from psannlm's Tokenizer.to_state.
      path: the file, for messages.

    Raises:
      UserError: the tokenizer has no counterpart here or cannot be read, or its library is not installed.
    """
    try:
        if state["backend"] == "sentencepiece":
            return _sentencepiece(state["model"])
        if state["backend"] == "simple":
            return Tokenizer(TokenizersModel(_characters(state["vocabulary"])), _NAMES)
        if state["passthrough_ids"]:
            return _passthrough(state["model"], state["special_ids"])
        return Tokenizer(TokenizersModel(_shifted(state["model"])), _NAMES)
    except UserError:
        raise
    except Exception as error:  # the libraries raise plain Exception and RuntimeError
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: its tokenizer cannot be read: {reason}; give one with --tokenizer") from error


def _sentencepiece(proto: bytes) -> Tokenizer:
    pieces = sentencepiece_library().SentencePieceProcessor(model_proto=proto)
    return Tokenizer(SentencePieceModel(proto), {role: pieces.id_to_piece(i) for i, role in enumerate(SPECIAL_TOKENS)})


def _passthrough(description: str, special_ids: Mapping[str, int]) -> Tokenizer:
    model = TokenizersModel(description)
    content = json.loads(description)
    vocabulary = _vocabulary(content["model"]) | {token["content"]: token["id"] for token in content["added_tokens"]}
    by_id = {i: token for token, i in vocabulary.items()}
    return Tokenizer(model, {role: by_id[i] for role, i in special_ids.items()})


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    """Returns the ids by token of a model of the `tokenizers` library, which stores a list for unigram models."""
    vocabulary = model["vocab"]
    return dict(vocabulary) if isinstance(vocabulary, dict) else {piece[0]: i for i, piece in enumerate(vocabulary)}


def _shifted(description: str) -> str:
    """Shifts the model's ids by four, to make room for psannlm's special tokens."""
    content, n = json.loads(description), len(_NAMES)
    model = content["model"]
    if isinstance(model["vocab"], dict):
        own = {name: i for i, name in enumerate(_NAMES.values())}
        model["vocab"] = own | {token: i + n for token, i in model["vocab"].items()}
    else:
        model["vocab"] = [*([name, 0.0] for name in _NAMES.values()), *model["vocab"]]
        model["unk_id"] = None if model.get("unk_id") is None else model["unk_id"] + n
    moved = [{**token, "id": token["id"] + n} for token in content["added_tokens"]]
    content["added_tokens"] = [*_added(), *moved]
    return json.dumps(content)


def _characters(vocabulary: list[str]) -> str:
    """Describes psannlm's character tokenizer in the format of the `tokenizers` library."""
    names = [*_NAMES.values(), *vocabulary]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added(),
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": r"[\s\S]"},
                "behavior": "Isolated",
                "invert": False,
            },
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(names)}, "unk_token": _NAMES["unk"]},
        }
    )


def _added() -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": name, **flags} for i, name in enumerate(_NAMES.values())]
