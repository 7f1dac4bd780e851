"""Matches two vocabularies, so that a network can go on with another tokenizer."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.config import require
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.models.network import Network

# A token with several takes the row of the first; that of pad is never trained.
_ROLES = ("eos", "bos", "pad", "unk")


@dataclass(frozen=True)
class VocabularyRows:
    """For each token of a new vocabulary, the tokens of an old one whose rows are averaged to make its row.

    A token that the old vocabulary has, by its text or as a special token, gets that row; one that is both bos and eos
    gets the mean of the two. Any other gets the mean of the rows of the tokens into which the old tokenizer divides its
    text (Gee et al., 2022, "Fast Vocabulary Transfer"); if its bytes are not a text, the mean of all rows.

    Attributes:
      ids: of old tokens, those of all new tokens one after another; the size of the old vocabulary stands for the mean.
      counts: how many of `ids` each new token has, (V,).
      n_matched: how many new tokens get the row of one old token that is the same.
    """

    ids: np.ndarray
    counts: np.ndarray
    n_matched: int

    def apply(self, array: jax.Array, axis: int) -> jax.Array:
        """Returns an array with the axis of the old vocabulary replaced by one of the new vocabulary."""
        rows = jnp.moveaxis(array, axis, 0)
        rows = jnp.concatenate([rows, jnp.mean(rows, axis=0, keepdims=True)])
        n = len(self.counts)
        owners = np.repeat(np.arange(n), self.counts)
        sums = jax.ops.segment_sum(rows[self.ids], owners, n, indices_are_sorted=True)
        means = sums / self.counts.reshape(-1, *(1,) * (rows.ndim - 1)).astype(np.float32)
        return jnp.moveaxis(means, 0, axis)


def match_vocabularies(
    old: Tokenizer | None, new: Tokenizer | None, source: Network, target: Network
) -> VocabularyRows | None:
    """Returns how the rows of a new vocabulary follow from an old one; None if the vocabularies are the same.

    Args:
      old: the tokenizer of the weights, if it is known.
      new: the tokenizer of the new run; None if it has no text.
      source: the network of the weights.
      target: the network of the new run.

    Raises:
      ConfigError: the sizes differ, and the tokenizer of the weights is not known.
    """
    if new is None:
        return None
    if old is None:
        sizes = source.config.vocab_size, target.config.vocab_size
        require(
            sizes[0] == sizes[1],
            "data.tokenizer.path",
            f"has {sizes[1]} tokens, but the weights of train.init_from {sizes[0]}, and without a tokenizer, which "
            "could match them; name the tokenizer that they were trained with",
        )
        return None
    return None if old.fingerprint == new.fingerprint else _match(old, new)


def _match(old: Tokenizer, new: Tokenizer) -> VocabularyRows:
    special, old_special = _special(new), _special(old)
    by_text = {old.piece(i): i for i in reversed(range(old.vocab_size)) if i not in old_special.values()}
    found = {i: [old_special[role]] for role, i in reversed(special.items()) if role in old_special}
    if new.bos_id == new.eos_id:
        found[new.eos_id] = [old.bos_id, old.eos_id]
    texts = {i: new.piece(i) for i in range(new.vocab_size) if i not in found}
    found |= {i: [by_text[text]] for i, text in texts.items() if text in by_text}
    n_matched = sum(len(set(ids)) == 1 for ids in found.values())
    parts = {i: text.decode() for i, text in texts.items() if i not in found and _is_text(text)}
    encoded = old.encode_batch(list(parts.values()))
    found |= {i: ids for i, ids in zip(parts, encoded, strict=True) if ids}
    rows = [found.get(i, [old.vocab_size]) for i in range(new.vocab_size)]
    return VocabularyRows(np.concatenate(rows), np.array([len(ids) for ids in rows]), n_matched)


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the special tokens by their role."""
    return {role: i for role in _ROLES if (i := getattr(tokenizer, f"{role}_id")) is not None}


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
