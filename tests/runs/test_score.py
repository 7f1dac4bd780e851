"""Log-likelihoods of continuations, compared with the network's own logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.runs.restore import load_text_run
from psann_jax.runs.score import Scorer
from psann_jax.utils.errors import UserError
from tests.support.saved import save_run
from tests.support.tiny import tiny_config

WINDOW = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with random parameters."""
    tmp_path = tmp_path_factory.mktemp("scored")
    save_run(tmp_path / "run", tiny_config(tmp_path, model__logit_softcap=3.0), {4: 1.0})
    return load_text_run(tmp_path / "run")


@pytest.fixture(scope="module")
def scorer(run):
    """A scorer with batches of three rows."""
    return Scorer(run, batch_size=3)


@pytest.fixture(scope="module")
def direct(run):
    """A function that scores one pair from the logits of a window."""

    @jax.jit
    def logits(tokens):
        model = run.network.merge(run.params)
        x, _, _ = model.hidden(tokens)
        return model.logits(x)

    def score(context, continuation):
        ids = np.array([*context, *continuation])[-(WINDOW + 1) :]
        row = np.zeros((1, WINDOW), np.int32)
        row[0, : len(ids) - 1] = ids[:-1]
        scores = np.asarray(jax.nn.log_softmax(logits(jnp.asarray(row))))[0]
        positions = range(len(ids) - 1 - len(continuation), len(ids) - 1)
        logprob = sum(scores[i, ids[i + 1]] for i in positions)
        return logprob, all(scores[i].argmax() == ids[i + 1] for i in positions)

    return score


ids_of = st.integers(0, 259)
pairs = st.tuples(st.lists(ids_of, min_size=1, max_size=50), st.lists(ids_of, max_size=WINDOW))


@settings(max_examples=20, deadline=None)
@given(st.lists(pairs, max_size=7))
def test_scores_equal_those_of_full_logits(scorer, direct, asked):
    for pair, score in zip(asked, scorer(asked), strict=True):
        logprob, greedy = direct(*pair)
        assert score.logprob == pytest.approx(logprob, abs=1e-3, rel=1e-4)
        assert score.greedy == greedy


def test_greedy_agrees_with_greedy_decoding(run, scorer):
    context = [run.tokenizer.bos_id, 65, 66]
    best = max(range(run.tokenizer.vocab_size), key=lambda i: scorer([(context, [i])])[0].logprob)
    assert scorer([(context, [best])])[0].greedy
    assert not scorer([(context, [(best + 1) % 256])])[0].greedy
    assert not scorer([(context, [best, best, best, best, best, best])])[0].greedy


def test_invalid_pairs_are_named(run, scorer):
    with pytest.raises(UserError, match="context: is empty"):
        scorer([([], [1])])
    with pytest.raises(UserError, match="continuation: has 33 tokens, more than the context of 32"):
        scorer([([1], [2] * 33)])
    with pytest.raises(UserError, match="batch_size: is 0, must be a positive multiple of 1"):
        Scorer(run, batch_size=0)
