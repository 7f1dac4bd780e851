"""Files of ranks of the tiktoken library (.tiktoken): a BPE of the `tokenizers` library with the same ids."""

import base64
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psann_jax.config import ConfigError, TokenizerConfig
from psann_jax.data.tokenizer_json import byte_level_tokenizer, byte_name
from psann_jax.utils.errors import UserError

SUFFIX = ".tiktoken"
_CONTRACTIONS = "'(?i:[sdmt]|ll|ve|re)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# Patterns by name, as in tiktoken_ext/openai_public.py of tiktoken 0.14, for Oniguruma.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*"
    r"|\s++\z|\s*[\r\n]|\s+(?!\S)|\s+",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?:{_CONTRACTIONS})?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?:{_CONTRACTIONS})?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_NAMES_OF_FILES = {"r50k_base": "gpt2", "p50k_base": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}


def read_tiktoken(path: Path, data: bytes, config: TokenizerConfig) -> dict[str, Any]:
    """Returns the content of a tokenizer.json with the ids of tiktoken.

    The file has no special tokens. Those of the config that text begins, ends and is padded with follow the last rank:
    eos, bos, pad.

    Args:
      path: of the file; the pattern of a file of OpenAI is known by its name.
      data: content of the file.
      config: the pattern, and names of special tokens.

    Raises:
      UserError: the file is damaged, or its pattern is not known.
    """
    ranks = _ranks(path, data)
    pattern = _pattern(path, config.pattern)
    vocabulary = {byte_name(token): rank for token, rank in ranks.items()}
    for name in dict.fromkeys((config.eos_token, config.bos_token, config.pad_token)):
        if name in vocabulary:
            raise ConfigError(f"data.tokenizer: {path} has an ordinary token {name!r}; rename the special token")
        vocabulary[name] = max(vocabulary.values()) + 1
    try:
        return byte_level_tokenizer(vocabulary, _merges(ranks), pattern)
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"data.tokenizer.pattern: {pattern!r} cannot be used: {error}") from error


def _ranks(path: Path, data: bytes) -> dict[bytes, int]:
    try:
        pairs = [line.split() for line in data.splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise UserError(
            f"{path}: is not a tiktoken file, which has a base64 token and its rank in each line"
        ) from error
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or len(ranks) != len(pairs) or len(set(ranks.values())) != len(ranks) or min(ranks.values()) < 0:
        raise UserError(
            f"{path}: is not a complete tiktoken file: it must have all 256 bytes, and no token or rank twice"
        )
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """Returns, in the order of the ranks, the last merge that makes each token.

    Within a token, pairs merge in the same order as in a text, so no other pair makes it. Tokens that no merge makes
    are used for whole parts of the text only, by `ignore_merges`.
    """
    merges = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        parts = _merged(token, ranks) if len(token) > 1 else []
        if len(parts) == 2:
            merges.append((byte_name(parts[0]), byte_name(parts[1])))
    return merges


def _merged(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Merges the bytes of a token with the ranks below its own."""
    parts, limit = [bytes([byte]) for byte in token], ranks[token]
    while len(parts) > 1:
        found = [ranks.get(a + b, limit) for a, b in itertools.pairwise(parts)]
        best = min(found)
        if best >= limit:
            break
        i = found.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _pattern(path: Path, given: str) -> str:
    """Returns the pattern of a file for Oniguruma.

    Raises:
      ConfigError: it is not known, or means something else in Oniguruma.
    """
    name = given or _NAMES_OF_FILES.get(path.stem, "")
    if not name:
        known = ", ".join(PATTERNS)
        raise ConfigError(f"data.tokenizer.pattern: is missing for {path}; must be {known} or a regular expression")
    return PATTERNS[name] if name in PATTERNS else _for_oniguruma(name)


def _for_oniguruma(pattern: str) -> str:
    r"""Converts tiktoken's syntax: ^ and $ are the ends of a text there, but of a line in Oniguruma."""
    result, in_class = "", False
    for part in re.findall(r"\\.|\}\+|.", pattern, re.DOTALL):
        if part == "}+" and not in_class:
            raise ConfigError(
                "data.tokenizer.pattern: has {...}+, a possessive quantifier that `tokenizers` lacks; "
                "write the part as (?>...{...})"
            )
        in_class = (in_class or part == "[") and part != "]"
        result += part if in_class else {"$": r"\z", "^": r"\A"}.get(part, part)
    return result
