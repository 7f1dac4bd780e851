"""What a text and its parts amount to: bytes of what is evaluated, tokens without padding."""

import pytest

from psann_jax.config import TokenizerConfig
from tests.data.test_loader import LENGTH, load, random_lines


@pytest.mark.parametrize("pack", [True, False])
def test_bytes_of_an_evaluated_part_of_the_text(tmp_path, pack):
    """Tokens of the repetitive first half stand for more bytes than those of the second half."""
    lines = ["abcdefghij" * 6] * 40 + random_lines(40, 3, "klmnopé日")
    (tmp_path / "v.txt").write_text("\n".join(lines))
    settings = {"tokenizer": TokenizerConfig(vocab_size=300), "pack": pack, "document": "line"}
    data = load(tmp_path, lines, valid_sources=(str(tmp_path / "v.txt"),), **settings)
    assert data.evaluated_bytes() == data.evaluated_bytes(10**9) == len("".join(lines).encode())
    n = data.n_valid_windows // 3
    max_tokens = n * LENGTH
    (batch,) = data.valid_batches(batch_size=n, max_tokens=max_tokens)
    rows = batch["tokens"]
    # Packed windows overlap by one token.
    ids = [rows[0, 0], *rows[:, 1:].ravel()] if pack else rows.ravel()
    assert data.evaluated_bytes(max_tokens) == len(data.tokenizer.decode(ids).encode())
    targets = ((batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]) & (rows[:, 1:] > 0)).sum()
    assert data.evaluated_bytes(max_tokens) / targets > 1.2 * data.bytes_per_token


def test_a_token_that_ends_within_a_character_counts_its_bytes(tmp_path):
    (tmp_path / "v.txt").write_text("日" * 40)
    data = load(tmp_path, valid_sources=(str(tmp_path / "v.txt"),))
    assert data.evaluated_bytes(LENGTH) == LENGTH  # and the bos


def test_padding_is_not_counted_as_tokens(tmp_path):
    lines = ["a" * 3, "b" * 8, "c" * 40]
    (tmp_path / "v.txt").write_text("xy")
    valid = {"valid_sources": (str(tmp_path / "v.txt"),), "document": "line"}
    assert load(tmp_path, lines * 9, **valid).tokens_per_row == LENGTH
    # Targets are the bytes and the eos, in 1, 1 and 3 rows.
    assert load(tmp_path, lines * 9, pack=False, **valid).tokens_per_row == (4 + 9 + 41) / 5
    weighted = load(tmp_path, lines[:1] * 9, lines[1:2] * 9, pack=False, weights=(3.0, 1.0), **valid)
    assert weighted.tokens_per_row == (3 * 4 + 9) / 4
