"""Looks up rows of a sharded table in bf16 on eight devices and prints errors and communication, as JSON."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from psann_jax.config import MeshConfig
from psann_jax.nn.embedding import embed
from psann_jax.nn.mesh import make_mesh
from psann_jax.nn.partition import RULES
from psann_jax.train.mesh import batch_sharding

ROWS, LENGTH, FEATURES = 8, 1024, 16
_COLLECTIVE = re.compile(r"= \w+\[([\d,]*)\][^ ]* (?:all-gather|all-reduce|reduce-scatter|all-to-all)\(")


def measured(vocab):
    """Returns the relative error of the gradient, whether values are equal, and the largest array communicated."""
    mesh, rng = make_mesh(MeshConfig(2, 2, 2)), np.random.default_rng(0)
    stored = NamedSharding(mesh, RULES.stored(("vocab", "embed"), (vocab, FEATURES), mesh))
    table = rng.normal(size=(vocab, FEATURES)).astype(np.float32)
    ids = rng.integers(0, vocab, (ROWS, LENGTH)).astype(np.int32)
    ids[:, ::2] = 3
    g = rng.choice([0.25, 0.5, 1.0], (ROWS, LENGTH, FEATURES)).astype(np.float32)  # exact in bf16

    def loss(table, ids, g):
        x = embed(table, ids, jnp.bfloat16)
        return jnp.sum(x.astype(jnp.float32) * g), x

    batch = batch_sharding(mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, has_aux=True), in_shardings=(stored, batch, batch), out_shardings=(stored, batch))
        compiled = step.lower(table, ids, g).compile()
        gradient, x = jax.device_get(
            compiled(jax.device_put(table, stored), jax.device_put(ids, batch), jax.device_put(g, batch))
        )
    expected = np.zeros(table.shape)
    np.add.at(expected, ids, g)
    sizes = [math.prod(map(int, shape.split(","))) for shape in _COLLECTIVE.findall(compiled.as_text()) if shape]
    return {
        "error": float(np.abs(gradient - expected).max() / np.abs(expected).max()),
        "equal": bool((x == table.astype(jnp.bfloat16)[ids]).all()),
        "communicated": max(sizes) / (x.size // 4),  # of the rows of a device
    }


if __name__ == "__main__":
    print(json.dumps({vocab: measured(vocab) for vocab in (512, 511)}))
