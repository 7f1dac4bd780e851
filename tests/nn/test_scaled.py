"""nn/scaled.py: the factor of Snake and scaled GELU follows the settings of the sine's frequency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from psann_jax.config import SineConfig
from psann_jax.nn.mlp import make_activation
from psann_jax.nn.sine import effective_frequency

every_name = pytest.mark.parametrize("name", ["snake", "scaled_gelu"])


def layer(name, seed=0, features=4096, **options):
    return make_activation(name, features, SineConfig(**options), None, rngs=nnx.Rngs(params=seed))


def factors(activation):
    return np.asarray(effective_frequency(activation.frequency, activation.config))


@every_name
def test_factors_are_drawn_like_the_frequency_of_the_sine(name):
    options = {"freq_init": 1.5, "freq_init_std": 0.3}
    scaled, sine = factors(layer(name, **options)), np.asarray(layer("sine", **options).values()[1])
    assert scaled.mean() == pytest.approx(sine.mean(), abs=0.02)
    assert scaled.std() == pytest.approx(sine.std(), abs=0.02)
    drawn = [factors(layer(name, seed, 8, freq_init_std=0.0, freq_range=(1.0, 3.0))) for seed in range(9)]
    assert all(np.ptp(values) == 0 and 1 <= values[0] <= 3 for values in drawn)
    assert np.std([values[0] for values in drawn]) > 0.2


@every_name
def test_bounds_clamp_and_a_frozen_factor_gets_no_gradient(name):
    z = jnp.linspace(-2, 2, 9)[:, None]
    bounded = layer(name, features=1, freq_init=5.0, freq_init_std=0.0, freq_bounds=(0.5, 2.0))
    at_bound = layer(name, features=1, freq_init=2.0, freq_init_std=0.0)
    np.testing.assert_allclose(bounded(z), at_bound(z), rtol=1e-4, atol=1e-5)
    for trainable in (True, False):
        graphdef, state = nnx.split(layer(name, features=1, trainable=trainable))
        grads = jax.grad(lambda s, graphdef=graphdef: nnx.merge(graphdef, s)(z).sum())(state)
        assert bool(jnp.abs(grads["frequency"][...]).max()) == trainable
        assert state["frequency"].get_metadata()["info"].trainable == trainable
