"""GPU-07: what is generated is what the model and the filters allow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.config import Config
from psann_jax.models.network import Network
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.sample.generation import Row, generate
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.settings import Sampling
from psann_jax.selftest import child
from psann_jax.selftest.basics import LEAST_FALL
from psann_jax.selftest.check import Check, Findings, Machine
from psann_jax.selftest.sizes import Sizes, small_experiment
from psann_jax.selftest.training import Fall, Training

TOP_K, TOP_P = 3, 0.6
# Flat enough that unfiltered tokens are outside the filters often, or else the filters would not be tested.
_TEMPERATURE = 1.5
SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "top_k": Sampling(temperature=_TEMPERATURE, top_k=TOP_K, top_p=1.0),
    "top_p": Sampling(temperature=_TEMPERATURE, top_p=TOP_P),
    "unfiltered": Sampling(temperature=_TEMPERATURE, top_p=1.0),
}
_LEAST_OUTSIDE = 0.05  # of the unfiltered tokens
# Logits of decoding with a cache and of the full forward pass differ by rounding.
_SLACK = 1e-3
_N_ROWS, _PROMPT = 8, 8


def measure_generation(config: Config) -> dict[str, Any]:
    """Trains a little, generates with every setting, and looks at each token with the full forward pass."""
    with jax.default_matmul_precision("highest"):
        training = Training(config, make_mesh(ONE_DEVICE, all_devices=False)).take(config.train.steps)
        network, params = training.task.network, training.state["params"]
        length, vocab_size = config.data.max_length, network.config.vocab_size
        sampler = Sampler(network, params, eos_id=vocab_size - 1, max_length=length)
        batch = next(training.task.valid_batches(_N_ROWS))
        prompts = batch["tokens"][:, :_PROMPT].tolist()
        result: dict[str, Any] = {"losses": training.losses}
        for name, sampling in SETTINGS.items():
            rows = generate(sampler, prompts, sampling, max_new_tokens=length - _PROMPT)
            result[name] = judge_rows(rows, *_full_forward(network, params, rows, length))
    return result


def _full_forward(network: Network, params: Any, rows: list[Row], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits at every position (B, L, V), and which positions have chosen a token (B, L)."""
    tokens_BxL, chose_BxL = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        text = [*row.prompt, *row.tokens]
        tokens_BxL[i, : len(text)] = text
        chose_BxL[i, len(row.prompt) - 1 : len(text) - 1] = True

    def logits(params: Any, tokens_BxL: jax.Array) -> jax.Array:
        model = network.merge(params)
        return model.logits(model.hidden(tokens_BxL)[0]).astype(jnp.float32)

    return np.asarray(jax.jit(logits)(params, tokens_BxL)), chose_BxL


def judge_rows(rows: list[Row], logits_BxLxV: np.ndarray, chose_BxL: np.ndarray) -> dict[str, Any]:
    """Counts of produced tokens that are wrong in one way or another.

    Args:
      rows: the texts.
      logits_BxLxV: by the full forward pass.
      chose_BxL: at which positions a token was produced, row by row in the order of `rows`.

    Returns:
      tokens, in all; invalid ids; not_finite, logits or log-probabilities; not_best, outside_top_k and outside_top_p,
      by the logits; logprob_error, the greatest difference of the reported log-probabilities.
    """
    logits_TxV = logits_BxLxV[chose_BxL].astype(np.float64)
    tokens_T = np.array([t for row in rows for t in row.tokens])
    logprobs_T = np.array([p for row in rows for p in row.logprobs])
    valid_T = (tokens_T >= 0) & (tokens_T < logits_TxV.shape[1])
    chosen_T = np.take_along_axis(logits_TxV, np.clip(tokens_T, 0, logits_TxV.shape[1] - 1)[:, None], 1)[:, 0]
    expected_T = chosen_T - np.log(np.sum(np.exp(logits_TxV), axis=1))
    return {
        "tokens": len(tokens_T),
        "invalid": int(np.sum(~valid_T)),
        "not_finite": int(np.sum(~np.isfinite(logprobs_T)) + np.sum(~np.isfinite(logits_TxV))),
        "not_best": int(np.sum(chosen_T < logits_TxV.max(axis=1) - _SLACK)),
        "outside_top_k": int(np.sum(chosen_T < _least_of_top_k(logits_TxV) - _SLACK)),
        "outside_top_p": int(np.sum(chosen_T < _least_of_nucleus(logits_TxV) - _SLACK)),
        "logprob_error": float(np.max(np.abs(logprobs_T - expected_T), initial=0)),
    }


def _least_of_top_k(logits_TxV: np.ndarray) -> np.ndarray:
    """The k-th greatest logit."""
    return np.sort(logits_TxV, axis=1)[:, -TOP_K]


def _least_of_nucleus(logits_TxV: np.ndarray) -> np.ndarray:
    """The least logit among the most probable tokens that first reach the share top_p."""
    descending = -np.sort(-logits_TxV / _TEMPERATURE, axis=1)
    shares = np.exp(descending - descending[:, :1])
    reached = np.cumsum(shares, axis=1) / np.sum(shares, axis=1, keepdims=True)
    # A rounding of the sum must not decide whether one more token belongs to it.
    last = np.argmax(reached >= TOP_P + _SLACK, axis=1)
    return np.take_along_axis(descending, last[:, None], 1)[:, 0] * _TEMPERATURE


def check_generation(sizes: Sizes, machine: Machine) -> Findings:
    """Every base: finite numbers, valid ids, filters that act, log-probabilities of the full forward pass."""
    del machine
    configs = {base: small_experiment(sizes, base) for base in sizes.bases}
    found = Findings(child.in_child(child.for_each, measure_generation, configs))
    for base, result in found.measured.items():
        fall = Fall.of(result["losses"])
        found.expect(fall.share >= LEAST_FALL, f"{base}: the loss went from {fall.first:.3f} to {fall.last:.3f}")
        for name in SETTINGS:
            one, where = result[name], f"{base}, {name}"
            found.expect(one["tokens"] >= _N_ROWS, f"{where}: {one['tokens']} tokens from {_N_ROWS} prompts")
            found.expect(one["invalid"] == 0, f"{where}: {one['invalid']} ids outside the vocabulary")
            found.expect(one["not_finite"] == 0, f"{where}: {one['not_finite']} numbers that are not finite")
            error = one["logprob_error"]
            found.expect(error <= _SLACK, f"{where}: log-probabilities are off by {error:.2g}")
        for name, count in (("greedy", "not_best"), ("top_k", "outside_top_k"), ("top_p", "outside_top_p")):
            wrong = result[name][count]
            found.expect(wrong == 0, f"{base}: {wrong} of {result[name]['tokens']} {name} tokens are {count}")
            outside = result["unfiltered"][count] / max(result["unfiltered"]["tokens"], 1)
            found.expect(outside >= _LEAST_OUTSIDE, f"{base}: {outside:.2f} of the unfiltered tokens are {count}")
    return found


GENERATION = Check(
    "GPU-07",
    "generation: finite, valid, and within top-k and top-p",
    {"wrong_tokens": 0, "logit_slack": _SLACK, "unfiltered_outside": _LEAST_OUTSIDE, "fall": LEAST_FALL},
    check_generation,
)
