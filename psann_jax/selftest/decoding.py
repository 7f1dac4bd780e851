"""GPU-07: generated tokens agree with the logits of the full forward pass and with the sampling filters."""

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
from psann_jax.selftest.check import Check, Findings, Machine
from psann_jax.selftest.sizes import Sizes, small_experiment
from psann_jax.selftest.training import MIN_LOSS_DROP, Training, expect_loss_drop

TOP_K, TOP_P = 3, 0.6
# High enough that unfiltered tokens are often outside the filters; otherwise the filters would not be tested.
_TEMPERATURE = 1.5
SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "top_k": Sampling(temperature=_TEMPERATURE, top_k=TOP_K, top_p=1.0),
    "top_p": Sampling(temperature=_TEMPERATURE, top_p=TOP_P),
    "unfiltered": Sampling(temperature=_TEMPERATURE, top_p=1.0),
}
_MIN_OUTSIDE = 0.05  # fraction of the unfiltered tokens
_TOLERANCE = 1e-3  # in logits: cached decoding and the full forward pass round differently
_N_ROWS, _PROMPT = 8, 8


def measure_generation(config: Config) -> dict[str, Any]:
    """Trains briefly, generates with every setting, and compares each token with the full forward pass."""
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
            result[name] = compare_rows(rows, *_full_forward(network, params, rows, length))
    return result


def _full_forward(network: Network, params: Any, rows: list[Row], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits (B, L, V), and the positions whose logits chose a generated token (B, L)."""
    tokens_BxL, chose_BxL = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        text = [*row.prompt, *row.tokens]
        tokens_BxL[i, : len(text)] = text
        chose_BxL[i, len(row.prompt) - 1 : len(text) - 1] = True

    def logits(params: Any, tokens_BxL: jax.Array) -> jax.Array:
        model = network.merge(params)
        return model.logits(model.hidden(tokens_BxL)[0]).astype(jnp.float32)

    return np.asarray(jax.jit(logits)(params, tokens_BxL)), chose_BxL


def compare_rows(rows: list[Row], logits_BxLxV: np.ndarray, chose_BxL: np.ndarray) -> dict[str, Any]:
    """Counts generated tokens that disagree with the logits.

    Args:
      rows: generated rows.
      logits_BxLxV: logits of the full forward pass.
      chose_BxL: True at the positions whose logits chose a generated token, in the order of `rows`.

    Returns:
      tokens: number of generated tokens; invalid: ids outside the vocabulary; not_finite: logits and
      log-probabilities; not_best, outside_top_k, outside_top_p: tokens that the setting does not allow; logprob_error:
      the largest error of the reported log-probabilities.
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
        "not_best": int(np.sum(chosen_T < logits_TxV.max(axis=1) - _TOLERANCE)),
        "outside_top_k": int(np.sum(chosen_T < _top_k_threshold(logits_TxV) - _TOLERANCE)),
        "outside_top_p": int(np.sum(chosen_T < _top_p_threshold(logits_TxV) - _TOLERANCE)),
        "logprob_error": float(np.max(np.abs(logprobs_T - expected_T), initial=0)),
    }


def _top_k_threshold(logits_TxV: np.ndarray) -> np.ndarray:
    """Returns the k-th largest logit."""
    return np.sort(logits_TxV, axis=1)[:, -TOP_K]


def _top_p_threshold(logits_TxV: np.ndarray) -> np.ndarray:
    """Returns the smallest logit in the smallest set of most probable tokens whose probabilities sum to top_p."""
    descending = -np.sort(-logits_TxV / _TEMPERATURE, axis=1)
    weights = np.exp(descending - descending[:, :1])
    cumulative = np.cumsum(weights, axis=1) / np.sum(weights, axis=1, keepdims=True)
    # The tolerance keeps rounding of the sum from excluding a token.
    last = np.argmax(cumulative >= TOP_P + _TOLERANCE, axis=1)
    return np.take_along_axis(descending, last[:, None], 1)[:, 0] * _TEMPERATURE


def check_generation(sizes: Sizes, machine: Machine) -> Findings:
    """Checks for each base: finite numbers, valid ids, effective filters, and log-probabilities."""
    del machine
    configs = {base: small_experiment(sizes, base) for base in sizes.bases}
    found = Findings(child.in_child(child.for_each, measure_generation, configs))
    for base, result in found.measured.items():
        expect_loss_drop(found, base, result["losses"])
        for name in SETTINGS:
            one, where = result[name], f"{base}, {name}"
            found.expect(one["tokens"] >= _N_ROWS, f"{where}: only {one['tokens']} tokens for {_N_ROWS} prompts")
            found.expect(one["invalid"] == 0, f"{where}: {one['invalid']} ids outside the vocabulary")
            found.expect(
                one["not_finite"] == 0, f"{where}: {one['not_finite']} logits or log-probabilities that are not finite"
            )
            error = one["logprob_error"]
            found.expect(error <= _TOLERANCE, f"{where}: log-probabilities are off by {error:.2g}")
        for name, count in (("greedy", "not_best"), ("top_k", "outside_top_k"), ("top_p", "outside_top_p")):
            wrong, problem = result[name][count], count.replace("_", " ")
            found.expect(wrong == 0, f"{base}: {wrong} of {result[name]['tokens']} {name} tokens are {problem}")
            outside = result["unfiltered"][count] / max(result["unfiltered"]["tokens"], 1)
            found.expect(
                outside >= _MIN_OUTSIDE,
                f"{base}: {outside:.0%} of the unfiltered tokens are {problem}, at least {_MIN_OUTSIDE:.0%} expected",
            )
    return found


GENERATION = Check(
    "GPU-07",
    "generation: finite, valid, within top-k and top-p",
    {"wrong_tokens": 0, "logit_slack": _TOLERANCE, "unfiltered_outside": _MIN_OUTSIDE, "fall": MIN_LOSS_DROP},
    check_generation,
)
