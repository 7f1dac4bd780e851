"""Loss and gradients of networks on eight devices, with and without activations split along the window, as JSON.

Args: names of variants.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.config import MeshConfig
from psann_jax.config.io import default_config, parse
from psann_jax.data.random_text import RandomText
from psann_jax.models import network as network_module
from psann_jax.nn.mesh import make_mesh
from psann_jax.nn.partition import param_shardings
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.mesh import batch_sharding, put_batch
from tests.support.variants import variant

LENGTH, ROWS = 256, 4
# Double precision, because gradients of random gravity parameters are large enough to amplify float32 rounding.
jax.config.update("jax_enable_x64", True)
network_module.DTYPES["fp32"] = jnp.float64


def config_of(name, sequence, tensor):
    """Returns the config of a variant with enough layers for the activations between them to matter."""
    config = default_config("waveresnet")
    config.data.max_length = LENGTH
    config.train.update(batch_tokens=ROWS * LENGTH, precision="fp32")
    config.mesh.update(tensor=tensor, sequence=sequence)
    model = variant(name, vocab_size=32, d_model=32, n_layers=4, dropout=0.1)
    if hasattr(model, "n_positions"):
        model = dataclasses.replace(model, n_positions=LENGTH)
    return dataclasses.replace(parse(config), model=model)


def batch_of():
    """Returns windows of several documents, with padding."""
    rng = np.random.default_rng(0)
    segment_ids = np.sort(rng.integers(1, 6, (ROWS, LENGTH + 1)), axis=1)
    segment_ids[0, -20:] = 0
    tokens = rng.integers(0, 32, segment_ids.shape)
    positions = np.arange(LENGTH + 1) - np.array([np.searchsorted(row, row) for row in segment_ids])
    batch = {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}
    return {name: rows.astype(np.int32) for name, rows in batch.items()}


def measured(name, sequence, sizes=(2, 1, 4)):
    """Returns loss and gradients on a mesh, and the bytes of temporary memory on a device."""
    config, mesh = config_of(name, sequence, sizes[2]), make_mesh(MeshConfig(*sizes), all_devices=False)
    task = LanguageModel(config, RandomText(config))
    task.check_mesh(mesh)
    params = param_shardings(mesh, task.network.abstract, task.network.infos)
    batch = batch_sharding(mesh)

    def loss(params, batch):
        return task.loss(params, batch, jax.random.key(1), jnp.int32(0))[0]

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss), in_shardings=(params, batch))
        wide = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float64), task.network.abstract)
        compiled = step.lower(wide, task.batch_shapes(ROWS)).compile()
        rng = np.random.default_rng(1)
        values = jax.tree.map(lambda a: 0.2 * rng.normal(size=a.shape), wide)
        found = compiled(jax.device_put(values, params), put_batch(batch_of(), batch))
    return jax.device_get(found), compiled.memory_analysis().temp_size_in_bytes


def difference(got, want):
    """Returns the largest relative difference of loss and gradients.

    Gradients that are zero apart from rounding, such as that of a key bias, are compared relative to the loss.
    """
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return float(max(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6 * abs(want[0])) for a, b in pairs))


def compare(name):
    """Returns the difference, and the bytes without and with the split."""
    (want, plain), (got, split) = measured(name, False), measured(name, True)
    return {"difference": difference(got, want), "bytes": [plain, split]}


if __name__ == "__main__":
    print(json.dumps({name: compare(name) for name in sys.argv[1:]}))
