"""Initial values, bounds and frozen parameters of the sine layer. Its values are in test_models_golden.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import SineConfig
from psann_jax.nn.sine import FREQUENCY_OFFSET, Sine, inverse_softplus


def layer(seed=0, features=4096, **options):
    return Sine(features, SineConfig(**options), None, rngs=nnx.Rngs(params=seed))


def used(raw):
    return np.asarray(jax.nn.softplus(raw[...]))


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e4))
def test_inverse_softplus_inverts_also_where_exp_overflows(value):
    np.testing.assert_allclose(jax.nn.softplus(inverse_softplus(jnp.float32(value))), value, rtol=1e-4)


def test_constant_init_is_the_value_itself():
    sine = layer(amp_init=2.0, freq_init=2.25, freq_init_std=0.0, damp_init=0.001)
    np.testing.assert_allclose(used(sine.amplitude), 2.0, rtol=1e-5)
    np.testing.assert_allclose(used(sine.frequency), 2.25, rtol=1e-5)
    np.testing.assert_allclose(used(sine.decay), 0.001, rtol=1e-3)
    np.testing.assert_allclose(sine.frequency[...], 2.138622, rtol=1e-5)


def test_std_draws_a_value_for_each_feature():
    frequency = used(layer(freq_init=2.25, freq_init_std=0.25).frequency)
    assert abs(frequency.mean() - 2.25) < 0.02
    assert abs(frequency.std() - 0.25) < 0.02


def test_a_draw_below_zero_is_clamped_to_a_tiny_positive_value():
    frequency = used(layer(freq_init=0.1, freq_init_std=1.0).frequency)
    assert np.isfinite(frequency).all()
    assert (frequency > 0).all()
    assert 0.4 < (frequency < 1e-6).mean() < 0.5


def test_range_draws_one_value_for_the_layer():
    options = {"freq_init_std": 0.0, "freq_range": (1.0, 3.0)}
    values = [used(layer(seed, features=8, **options).frequency) for seed in range(20)]
    assert all(np.ptp(v) == 0 for v in values)
    means = np.array([v[0] for v in values])
    assert ((means >= 1) & (means <= 3)).all()
    assert means.std() > 0.2


def test_bounds_clamp_the_value_in_use():
    z = jnp.linspace(-2, 2, 9)[:, None]
    bounded = layer(
        features=1, freq_init=5.0, freq_init_std=0.0, freq_bounds=(0.5, 2.0), amp_init=3.0, amp_bounds=(0, 1)
    )
    plain = layer(features=1, freq_init=2.0 - FREQUENCY_OFFSET, freq_init_std=0.0, amp_init=1.0)
    np.testing.assert_allclose(bounded(z), plain(z), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, {"amplitude", "frequency", "decay"}),
        ({"trainable": False}, set()),
        ({"learnable": ("frequency",)}, {"frequency"}),
        ({"decay_mode": "none"}, {"amplitude", "frequency"}),
    ],
)
def test_only_learnable_parameters_get_gradients(options, trained):
    graphdef, params = nnx.split(layer(features=3, **options))
    z = jnp.linspace(-2, 2, 6).reshape(2, 3)
    grads = nnx.to_pure_dict(jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(z) ** 2))(params))
    assert {name for name, g in grads.items() if np.abs(g).max() > 0} == trained


def test_half_precision_keeps_its_type_and_is_computed_in_float32():
    sine = layer(features=64)
    z = 3 * jax.random.normal(jax.random.key(0), (32, 64))
    half = sine(z.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), sine(z.astype(jnp.bfloat16).astype(jnp.float32)), atol=4e-3)
