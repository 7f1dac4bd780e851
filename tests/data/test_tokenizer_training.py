"""Training of tokenizers: text without separators, and Ctrl-C."""

import random
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from psann_jax.config import TokenizerConfig
from psann_jax.data import tokenizer_training
from psann_jax.data.builtin import python_documents
from psann_jax.data.tokenizer_training import _bounded, train_tokenizer

PRE_TOKENIZERS = {
    "bpe": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "wordpiece": pre_tokenizers.BertPreTokenizer(),
}


def dna(n_lines: int, n_letters: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("ACGT", k=n_letters)) for _ in range(n_lines)]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "sentencepiece"])
def test_text_without_separators_is_trained_on(kind):
    texts = dna(4, 150_000 if kind in ("bpe", "wordpiece") else 6_000)
    config = TokenizerConfig(kind=kind, vocab_size=2000 if kind in ("bpe", "wordpiece") else 320)
    tokenizer = train_tokenizer(texts, config, progress=False)  # takes minutes if pre-tokens have no bound
    assert tokenizer.vocab_size > 270
    if kind == "bpe":
        assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_only_long_pre_tokens_are_cut(kind, monkeypatch):
    pre_tokenizer = PRE_TOKENIZERS[kind]
    monkeypatch.setattr(tokenizer_training, "MAX_PRE_TOKEN", 5)

    def tokens(text):
        return [token for token, _ in pre_tokenizer.pre_tokenize_str(text)]

    @settings(deadline=None, max_examples=200)
    @given(
        st.lists(st.sampled_from(["a", "bcdefg", " ", "  ", "\n", "é", "123456789", ".", "'s", "日本語"])).map("".join)
    )
    def check(text):
        parts = list(_bounded(text, pre_tokenizer))
        assert "".join(parts) == text
        found = [token for part in parts for token in tokens(part)]
        assert "".join(found) == "".join(tokens(text))
        if all(last - first <= 5 for _, (first, last) in pre_tokenizer.pre_tokenize_str(text)):
            assert parts == [text]
        assert all(last - first <= 6 for part in parts for _, (first, last) in pre_tokenizer.pre_tokenize_str(part))

    check()


def test_ordinary_text_is_not_cut():
    texts = [text for text, _ in zip(python_documents(), range(30), strict=False)]
    assert all(list(_bounded(text, PRE_TOKENIZERS["bpe"])) == [text] for text in texts)


INTERRUPTED = """
import random, sys
from psann_jax.config import TokenizerConfig
from psann_jax.data.tokenizer_training import train_tokenizer

def texts():
    rng = random.Random(0)
    for i in range(6000):
        yield " ".join("".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(30))
    print("training", flush=True)

try:
    train_tokenizer(texts(), TokenizerConfig(kind=sys.argv[1]), progress=False)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("kind", ["bpe", "unigram", "sentencepiece"])
def test_ctrl_c_ends_the_training(kind):
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out == "interrupted\n"
