"""Learning rate schedules."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import TrainConfig
from psann_jax.train.schedules import learning_rate


def rates(config: TrainConfig, steps: int | None = None) -> np.ndarray:
    return np.array([learning_rate(i, config) for i in range(steps or config.steps)])


def test_cosine_without_a_floor_equals_the_original():
    config = TrainConfig(steps=8, warmup_steps=2, lr=0.01, end_lr_ratio=0.0)
    original = [0.005, 0.01, 0.00933, 0.0075, 0.005, 0.0025, 0.00067, 0.0]
    np.testing.assert_allclose(rates(config), original, atol=5e-6)


def test_golden_rates_of_the_original():
    golden = np.load(Path(__file__).parent.parent / "golden" / "train_5_steps.npz")["lr"]
    config = TrainConfig(steps=5, warmup_steps=2, lr=float(golden[1]), end_lr_ratio=0.0)
    np.testing.assert_allclose(rates(config), golden, rtol=1e-6, atol=1e-10)


def test_cosine_boundaries():
    config = TrainConfig(steps=100, warmup_steps=10, lr=0.4, end_lr_ratio=0.25)
    r = rates(config)
    np.testing.assert_allclose(r[[0, 4, 9]], [0.04, 0.2, 0.4], rtol=1e-6)
    np.testing.assert_allclose(r[9 + 45], 0.25, rtol=1e-6)  # the middle: (1 + r) / 2 of the peak
    np.testing.assert_allclose(r[9 + 30], 0.4 * (0.25 + 0.75 * 0.75), rtol=1e-6)  # cos(pi / 3) = 1 / 2
    np.testing.assert_allclose(r[99], 0.1, rtol=1e-6)


def test_linear_boundaries():
    config = TrainConfig(steps=50, warmup_steps=10, lr=1.0, end_lr_ratio=0.2, schedule="linear")
    r = rates(config)
    np.testing.assert_allclose(r[[0, 9, 19, 29, 49]], [0.1, 1.0, 0.8, 0.6, 0.2], rtol=1e-6)


def test_constant():
    r = rates(TrainConfig(steps=20, warmup_steps=5, lr=0.5, schedule="constant"))
    np.testing.assert_allclose(r, [0.1, 0.2, 0.3, 0.4, *[0.5] * 16], rtol=1e-6)


def test_wsd_is_stable_until_the_last_fraction():
    config = TrainConfig(steps=100, warmup_steps=4, lr=2.0, end_lr_ratio=0.5, schedule="wsd", decay_fraction=0.2)
    r = rates(config)
    np.testing.assert_allclose(r[3:80], 2.0, rtol=1e-6)
    np.testing.assert_allclose(r[80:], 2.0 - np.arange(1, 21) / 20, rtol=1e-6)


def test_wsd_decay_that_overlaps_the_warmup_begins_after_it():
    config = TrainConfig(steps=10, warmup_steps=6, lr=1.0, end_lr_ratio=0.0, schedule="wsd", decay_fraction=1.0)
    np.testing.assert_allclose(rates(config), [*np.arange(1, 7) / 6, 0.75, 0.5, 0.25, 0], rtol=1e-6, atol=1e-7)


def test_wsd_without_decay_is_constant():
    config = TrainConfig(steps=10, warmup_steps=0, lr=1.0, schedule="wsd", decay_fraction=0.0)
    np.testing.assert_array_equal(rates(config), 1.0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("steps", [5, 8])
def test_a_run_not_longer_than_the_warmup(schedule, steps):
    config = TrainConfig(steps=steps, warmup_steps=8, lr=0.8, schedule=schedule)
    np.testing.assert_allclose(rates(config), np.arange(1, steps + 1) / 10, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    schedule=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    steps=st.integers(1, 40),
    warmup=st.integers(0, 45),
    ratio=st.floats(0, 1),
    fraction=st.floats(0, 1),
)
def test_the_rate_rises_to_the_peak_and_never_rises_again(schedule, steps, warmup, ratio, fraction):
    config = TrainConfig(
        steps=steps, warmup_steps=warmup, lr=0.3, schedule=schedule, end_lr_ratio=ratio, decay_fraction=fraction
    )
    r = np.asarray(learning_rate(np.arange(48), config))  # one call for all steps: the function broadcasts
    assert np.isfinite(r).all()
    assert r.max() <= 0.3 * (1 + 1e-6)
    assert (np.diff(r[:warmup]) > 0).all()
    assert (np.diff(r[max(warmup - 1, 0) :]) <= 0.3 * 1e-6).all()  # float32 rounding
    if steps > warmup and schedule in ("cosine", "linear"):
        np.testing.assert_allclose(r[steps - 1 :], 0.3 * ratio, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_a_traced_step_gives_the_same_rate(schedule):
    config = TrainConfig(steps=30, warmup_steps=5, schedule=schedule)
    traced = jax.jit(lambda step: learning_rate(step, config))
    for step in (0, 4, 5, 17, 29):
        rate = traced(step)
        assert rate.dtype == np.float32
        assert rate.shape == ()
        np.testing.assert_allclose(rate, learning_rate(step, config), rtol=1e-6)


def test_more_steps_do_not_change_the_warmup():
    short = TrainConfig(steps=20, warmup_steps=10)
    long = dataclasses.replace(short, steps=2000)
    np.testing.assert_array_equal(rates(short, 10), rates(long, 10))
