"""Random tokens in place of text: their form and statistics."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import Config, DataConfig, DecoderConfig, TrainConfig
from psann_jax.data.random_text import RandomText

TINY = Config(
    model=DecoderConfig(base="waveresnet", vocab_size=50, d_model=16, n_layers=2, n_heads=2, d_mlp=32),
    data=DataConfig(max_length=16),
    train=TrainConfig(batch_tokens=64, precision="fp32", warmup_steps=0),
)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 600), st.integers(1, 4), st.integers(4, 3000), st.booleans(), st.booleans())
def test_random_text_looks_like_real_text(length, rows, vocab_size, mask, pack):
    model = dataclasses.replace(TINY.model, vocab_size=vocab_size)
    data = DataConfig(max_length=length, document_mask=mask or not pack, pack=pack)
    config = dataclasses.replace(TINY, model=model, data=data)
    batch = next(RandomText(config).train_batches(seed=0, batch_size=rows))
    tokens, segment_ids, positions = (batch[name] for name in ("tokens", "segment_ids", "positions"))
    for array in batch.values():
        assert array.shape == (rows, length + 1)
        assert array.dtype == np.int32
    assert tokens.min() >= 0
    assert tokens.max() < vocab_size
    assert (segment_ids[:, 0] == 1).all()
    if not pack:
        assert set(np.unique(segment_ids)) <= {0, 1}
        assert (np.diff(segment_ids) <= 0).all(), "padding comes last"
        assert (segment_ids[:, 1] == 1).all(), "a document has two tokens at least"
        assert not tokens[segment_ids == 0].any()
        return
    assert np.isin(np.diff(segment_ids), (0, 1)).all()
    same = np.diff(segment_ids) == 0
    assert (positions[:, 1:][same] == positions[:, :-1][same] + 1).all()
    assert (positions[:, 1:][~same] == 0).all()
    if not mask:
        assert (segment_ids == 1).all()


def test_random_text_is_seeded_and_has_the_stated_statistics():
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, vocab_size=1000), data=DataConfig())
    text = RandomText(config)
    first, second = itertools.islice(text.train_batches(seed=1, batch_size=64), 2)
    again = next(RandomText(config).train_batches(seed=1, batch_size=64))
    np.testing.assert_equal(again, first)
    assert (first["tokens"] != second["tokens"]).any()
    # Zipf: an id below k has the probability log(k + 1) / log(V).
    for k in (1, 10, 100):
        assert (first["tokens"] < k).mean() == pytest.approx(math.log(k + 1) / math.log(1000), abs=0.01)
    assert first["segment_ids"].max(axis=1).mean() == pytest.approx(1025 / 256, rel=0.25)
