"""Training states and checkpoints for tests."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from psann_jax.config import CheckpointConfig
from psann_jax.train.checkpoints import Checkpoints
from tests.support.processes import environment

METADATA = {"config": {"seed": 3, "model": {"base": "waveresnet", "mlp_activation": None}, "betas": [0.9, 0.95]}}


def make_state(seed: int = 0):
    """Returns a state like that of training: nested dicts, optax tuples, empty nodes, several dtypes."""
    a, b = jax.random.normal(jax.random.key(seed), (2, 8, 16))
    params = {"blocks": {"kernel": a, "half": b.astype(jnp.bfloat16)}, "embed": a.T}
    mask = {"blocks": {"kernel": "adamw", "half": "frozen"}, "embed": "adamw"}
    optimizer = optax.partition({"adamw": optax.adamw(1.0), "frozen": optax.set_to_zero()}, mask)
    return {
        "params": params,
        "ema_params": jax.tree.map(lambda p: p / 2, params),
        "opt_state": optimizer.init(params),
        "step": jnp.int32(seed),
        "tokens": jnp.uint32(4_000_000_000),
        "best_val_loss": jnp.float32(math.inf),
    }


def abstract(state):
    """Returns shapes, dtypes and shardings of a state."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_bit_equal(actual, expected):
    """Checks structure, dtypes and values."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


def open_checkpoints(directory, **config):
    """Opens checkpoints with settings of `CheckpointConfig`."""
    return Checkpoints(directory, CheckpointConfig(**config))


def run_python(code, *arguments, devices=1):
    """Runs code in a new process with forced CPU devices and returns the completed process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )
