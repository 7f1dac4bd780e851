"""Layers on a mesh that cannot split the rows of a batch, such as the single puzzle of a command, use no kernel."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from psann_jax.config import SineConfig
from psann_jax.nn.causal_filter import causal_filter
from psann_jax.nn.full_attention import full_attention
from psann_jax.nn.gravity import attend
from psann_jax.nn.partition import MESH_AXES
from psann_jax.nn.sine import Sine
from psann_jax.ops import kernels
from psann_jax.ops.gravity_scores import GravityForm, GravityInputs, GravityParams
from psann_jax.ops.tiles import NO_DROPOUT
from tests.support.devices import pretend


def attention(B):
    qkv = [jnp.ones((B, 81, 4, 32), jnp.bfloat16)] * 3
    return full_attention(*qkv, dropout=NO_DROPOUT)


def sine(B):
    return Sine(64, SineConfig(), None, rngs=nnx.Rngs(params=0))(jnp.ones((B, 8, 64)))


def spectral_filter(B):
    return causal_filter(jnp.ones((B, 80, 8)), jnp.ones((64, 8)), jnp.ones((B, 80), jnp.int32), max_shift=63)


def gravity(B, implementation="auto"):
    params = GravityParams(jnp.ones(4), jnp.zeros(4), jnp.ones(()))
    inputs = GravityInputs(jnp.ones((B, 80, 4, 8)), jnp.ones((B, 80, 4, 16)), params, None, None, None)
    return attend(GravityForm(), inputs, implementation)


@pytest.mark.parametrize(
    ("layer", "operation", "kernel", "plain"),
    [
        (attention, "full_attention", "triton", "plain"),
        (sine, "sine", "triton", "polynomial"),
        (spectral_filter, "causal_filter", "triton", "autodiff"),
        (gravity, "gravity", "pallas", "tiled"),
        # Training inspects few rows, even with the kernel that model.attention demands.
        (partial(gravity, implementation="pallas"), "gravity", "pallas", "tiled"),
        (partial(gravity, implementation="plain"), "gravity", "plain", "plain"),
    ],
)
def test_the_plain_form_takes_them(layer, operation, kernel, plain, monkeypatch):
    pretend(monkeypatch, "gpu")
    sizes, types = (2, *(1,) * (len(MESH_AXES) - 1)), (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    mesh = jax.sharding.AbstractMesh(sizes, MESH_AXES, axis_types=types)  # as make_mesh; newer JAX has another default
    chosen = {}
    for rows in (1, 2):
        with jax.sharding.use_abstract_mesh(mesh), kernels.recorded() as found:
            shape = jax.eval_shape(lambda rows=rows: layer(rows)).shape
        assert shape[0] == rows
        [chosen[rows]] = found[operation]
    assert chosen == {1: plain, 2: kernel}
