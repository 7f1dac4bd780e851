"""The training step against steps of psannlm's PyTorch model, and its handling of non-finite updates."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from psann_jax.config import Config, DataConfig, DecoderConfig, TrainConfig
from psann_jax.convert.psannlm_names import from_psannlm
from psann_jax.models import network as network_module
from psann_jax.nn.mesh import make_mesh
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.mesh import batch_sharding
from psann_jax.train.step import init_state, make_train_step, state_spec
from psann_jax.train.update import Update
from psann_jax.utils.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden" / "train_5_steps.npz"
MODEL = DecoderConfig(base="waveresnet", vocab_size=61, d_model=32, n_layers=2, n_heads=4, d_mlp=48)


def make(train, model=MODEL, document_mask=False, initial_params=None):
    """Returns a jitted training step and its initial state."""
    config = Config(model=model, data=DataConfig(document_mask=document_mask), train=train)
    text = SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=model.vocab_size))
    task, mesh = LanguageModel(config, text), make_mesh(config.mesh)
    spec = state_spec(task.network, train, mesh)
    step = make_train_step(task, train, spec, batch_sharding(mesh), config.seed)
    return step, init_state(task.network, train, spec, config.seed, initial_params)


def batch_of(tokens):
    """Returns a batch whose rows are one document each."""
    tokens = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return {"tokens": tokens, "segment_ids": jnp.ones_like(tokens), "positions": positions}


def random_batch(seed, rows=4, length=9):
    return batch_of(np.random.default_rng(seed).integers(0, MODEL.vocab_size, (rows, length)))


def copied(tree):
    """Returns copies, which survive the donation of the originals."""
    return jax.tree.map(lambda a: np.array(a), tree)


def close(actual, expected, rtol):
    actual, expected = np.asarray(actual), np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_sums_of_gradients_layer_by_layer_are_those_of_stacks(precision, monkeypatch):
    """So they are summed where XLA then sums them over devices once; in bf16 without rounding those of matrices."""
    moments = []
    for last in (False, True):
        monkeypatch.setattr(Update, "_sums_over_devices_last", lambda self, last=last: last)
        step, state = make(TrainConfig(steps=5, warmup_steps=1, precision=precision, grad_accum=4, scan_layers=False))
        state, _ = step(state, random_batch(0, rows=8))
        moments.append(optax.tree_utils.tree_get(copied(state["opt_state"]), "mu"))
    rtol = {"fp32": 1e-6, "bf16": 0.01}[precision]
    jax.tree.map(lambda a, b: close(a, b, rtol), *moments)


def test_five_steps_equal_the_original(x64, monkeypatch):
    """Losses, gradient norms before clipping, learning rates and the weights after the last update."""
    monkeypatch.setitem(network_module.DTYPES, "fp32", jnp.float64)
    arrays = np.load(GOLDEN)
    train = TrainConfig(
        steps=5,
        warmup_steps=2,
        lr=2.4e-3,
        end_lr_ratio=0.0,
        weight_decay_on="all",
        precision="fp32",
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.01,
        grad_clip=1.0,
    )
    start, end = (
        from_psannlm({k.removeprefix(f"{when}/"): arrays[k] for k in arrays if k.startswith(f"{when}/")}, MODEL)
        for when in ("start", "end")
    )
    step, state = make(train)
    state["params"] = jax.tree.map(jnp.asarray, start)
    state["opt_state"] = optax.tree_utils.tree_cast(state["opt_state"], jnp.float64)
    rows = []
    for tokens in arrays["tokens"]:
        state, metrics = step(state, batch_of(tokens))
        rows.append(jax.device_get(metrics))
    for ours, theirs in (("lr", "lr"), ("loss", "losses"), ("grad_norm", "grad_norms")):
        # The original computes rotary tables in float32, and the learning rate is float32 here.
        np.testing.assert_allclose([row[ours] for row in rows], arrays[theirs], rtol=2e-6, atol=1e-10)
    assert jax.tree.structure(state["params"]) == jax.tree.structure(end)
    jax.tree.map(lambda a, b: close(a, b, 2e-6), state["params"], end)


def test_a_non_finite_update_changes_nothing_but_counters():
    step, state = make(TrainConfig(precision="fp32", warmup_steps=0))
    state, _ = step(state, random_batch(0))
    before = copied(state)
    poisoned = before | {"params": before["params"] | {"head": before["params"]["head"] * np.inf}}
    after, metrics = step(copied(poisoned), random_batch(1))
    for name in ("params", "opt_state", "recent_loss"):
        jax.tree.map(np.testing.assert_array_equal, copied(after[name]), poisoned[name])
    assert (int(after["step"]), int(after["bad_steps"]), int(after["skipped_steps"])) == (2, 1, 1)
    assert not np.isfinite(metrics["loss"])

    healed = copied(after) | {"params": before["params"]}
    healed, metrics = step(healed, random_batch(1))
    assert (int(healed["bad_steps"]), int(healed["skipped_steps"])) == (0, 1)
    assert np.isfinite(metrics["loss"])
    assert np.any(np.asarray(healed["params"]["head"]) != before["params"]["head"])


def test_a_batch_without_targets_has_no_loss_and_no_part_in_the_mean():
    step, state = make(TrainConfig(precision="fp32", warmup_steps=0))
    state, first = step(state, random_batch(0))
    none = random_batch(1)
    state, metrics = step(state, none | {"segment_ids": jnp.zeros_like(none["tokens"])})
    assert np.isnan(metrics["loss"])
    assert np.isnan(metrics["accuracy"])
    assert (int(metrics["bad_steps"]), int(metrics["skipped_steps"])) == (0, 0)
    assert metrics["ppl_avg25"] == first["ppl_avg25"]
    state, metrics = step(state, random_batch(2))
    mean = (np.exp(first["loss"]) + np.exp(metrics["loss"])) / 2
    np.testing.assert_allclose(metrics["ppl_avg25"], mean, rtol=1e-6)


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    """Also if micro-batches have different numbers of targets."""
    train = TrainConfig(precision="fp32", warmup_steps=0, batch_tokens=4096)
    batch = random_batch(3, rows=8)
    batch["segment_ids"] = batch["segment_ids"].at[2:5, 4:].set(0)
    results = []
    for accum in (1, 4):
        step, state = make(dataclasses.replace(train, grad_accum=accum), document_mask=True)
        state, metrics = step(state, batch)
        # The first moment after one update is the clipped gradient times 1 - b1.
        results.append((copied(metrics), copied(state["opt_state"])))
    (whole, moments), (parts, moments_of_parts) = results
    for name in ("loss", "grad_norm", "accuracy"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5)
    jax.tree.map(lambda a, b: close(a, b, 2e-4), moments_of_parts, moments)


def test_sam_takes_the_gradient_at_distance_rho_in_ascent_direction():
    """The same with micro-batches."""
    train, batch, rho = TrainConfig(precision="fp32", warmup_steps=0, grad_clip=0.0), random_batch(3, rows=8), 0.3
    moments, losses = [], []
    for accum, sam_rho in ((1, 0.0), (1, rho), (4, rho)):
        step, state = make(dataclasses.replace(train, grad_accum=accum, sam_rho=sam_rho))
        start = copied(state)
        end, metrics = step(state, batch)
        moments.append(copied(end["opt_state"]))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5, err_msg="losses are those at the parameters themselves")
    plain, uphill, in_parts = moments
    jax.tree.map(lambda a, b: close(a, b, 2e-4), in_parts, uphill)
    # After one update the first moment is the gradient times 1 - b1.
    gradient, there = (optax.tree_utils.tree_get(m, "mu") for m in (plain, uphill))
    gradient, there = (jax.tree.map(lambda g: g / (1 - train.betas[0]), tree) for tree in (gradient, there))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
    moved = copied(start) | {"params": jax.tree.map(lambda p, g: p + rho / norm * g, start["params"], gradient)}
    step, _ = make(train)
    expected = optax.tree_utils.tree_get(copied(step(moved, batch)[0]["opt_state"]), "mu")
    jax.tree.map(lambda a, b: close(a, b / (1 - train.betas[0]), 1e-3), there, expected)


def test_ema_parameters_follow_the_live_ones():
    step, state = make(TrainConfig(precision="fp32", warmup_steps=0, ema_decay=0.75))
    expected = copied(state["params"])
    jax.tree.map(np.testing.assert_array_equal, copied(state["ema_params"]), expected)
    for i in range(3):
        state, _ = step(state, random_batch(i))
        expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * np.array(p), expected, state["params"])
    jax.tree.map(lambda a, b: close(a, b, 1e-6), state["ema_params"], expected)
    before = copied(state)
    poisoned = before | {"params": before["params"] | {"head": before["params"]["head"] * np.inf}}
    after, _ = step(poisoned, random_batch(9))
    jax.tree.map(np.testing.assert_array_equal, copied(after["ema_params"]), before["ema_params"])


def test_fp16_lowers_its_loss_scale_until_gradients_are_finite():
    step, state = make(TrainConfig(precision="fp16", warmup_steps=0))
    state = copied(state) | {"loss_scale": np.float32(2.0**40)}
    scales, bad = [], []
    for i in range(40):
        state, metrics = step(state, random_batch(i))
        scales.append(float(metrics["loss_scale"]))
        bad.append(int(metrics["bad_steps"]))
        if i and scales[-1] == scales[-2]:
            break
    assert scales[0] == 2.0**39, "the first update must overflow and halve the scale"
    assert scales[-1] == scales[-2] < 2.0**39, "updates must become finite"
    assert max(bad) == 0, "an overflow that a smaller scale removes must not count as a bad step"
    assert np.isfinite(metrics["loss"])
    assert int(state["skipped_steps"]) == len(scales) - 1


def test_given_parameters_are_copied_into_the_first_state():
    train = TrainConfig(precision="fp32", warmup_steps=0, ema_decay=0.5)
    step, state = make(train)
    given = jax.tree.map(lambda a: a + 1, state["params"])
    expected = copied(given)
    _, started = make(train, initial_params=given)
    for name in ("params", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, started[name], expected)
    step(started, random_batch(0))  # donates the state
    jax.tree.map(np.testing.assert_array_equal, given, expected)
    _, from_host = make(train, initial_params=expected)
    jax.tree.map(np.testing.assert_array_equal, from_host["params"], expected)


def test_given_parameters_must_fit_the_network():
    _, state = make(TrainConfig(precision="fp32"))
    given = state["params"] | {"head": state["params"]["head"].astype(jnp.bfloat16)}
    with pytest.raises(
        UserError, match=r"^initial_params do not fit the config\n  head: is bfloat16.*, must be float32"
    ):
        make(TrainConfig(precision="fp32"), initial_params=given)
