"""Loss and gradients of networks whose windows are divided over eight devices, and their difference from one, as JSON.

Args: names of `CASES`.
"""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.config import MeshConfig, WaveConfig
from psann_jax.config.io import default_config, parse
from psann_jax.data.random_text import RandomText
from psann_jax.nn.mesh import make_mesh
from psann_jax.nn.partition import param_shardings
from psann_jax.ops import kernels, tiles
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.mesh import batch_sharding, put_batch
from tests.multi_device.sequence import LENGTH, ROWS, batch_of, difference
from tests.support.variants import variant

tiles._CPU_TILE = 24  # so that the part of a device is several tiles, the last one padded
# data, fsdp, tensor, context
MESHES = {
    "context": (1, 1, 1, 8),
    "data": (2, 1, 1, 4),
    "fsdp": (1, 4, 1, 2),
    "tensor": (1, 1, 2, 4),
    "all": (1, 2, 2, 2),
}
# A variant, changes of it, and the meshes that it is tried on; without a document mask if the name says so.
FAR = WaveConfig(interleave=True, kernel=4, dilation_growth=4)  # reaches 192 tokens back, in parts of 32
CASES = {
    "modern": ("modern_swiglu_tied_softcap", {}, ("context", "all")),
    "one_document": ("modern", {}, ("context",)),
    "window": ("waveresnet_interleave_window", {}, ("context", "all")),
    "window_across": ("waveresnet_interleave_window", {"sliding_window": 80}, ("context", "fsdp")),
    "alibi": ("transformer_one_kv_head_window_alibi", {"sliding_window": 0}, ("context", "data")),
    "learned_positions": ("vanilla", {}, ("context", "all")),
    "sinusoidal": ("respsann_sinusoidal", {}, ("context", "tensor")),
    "scaled": ("respsann_scaled_gelu", {}, ("context",)),
    "dilated": ("waveresnet_dilated", {"wave": FAR}, ("context",)),
    "dilated_all": ("waveresnet_dilated", {"wave": FAR}, ("all",)),
    "one_tap": ("waveresnet_interleave_window", {"wave": WaveConfig(interleave=True, kernel=1)}, ("context",)),
    "replace": ("waveresnet_replace", {}, ("context", "tensor")),
    "spectral": ("sgrpsann", {}, ("context", "all")),
    "spectral_full": ("sgrpsann_fourier_full", {}, ("data",)),
    "ngt": ("ngt", {}, ("context",)),
    "ngt_all": ("ngt", {}, ("all",)),
    "ngt_one_document": ("ngt", {}, ("context",)),
    "ngt_value_soft": ("ngt_value_soft", {}, ("data",)),
    "ngt_attractive": ("ngt_attractive_decay", {}, ("context", "tensor")),
    "ngt_fixed": ("ngt_fixed_coordinates", {}, ("fsdp",)),
}
# The largest array of a model is (ROWS, LENGTH, features); an all-gather of one has at least this many numbers.
ACTIVATIONS = re.compile(r"= f\d+\[([\d,]+)\][^=]* all-gather\(")


def config_of(case, sizes):
    """Returns the config of a case on a mesh."""
    name, changes, _ = CASES[case]
    config = default_config("waveresnet")
    config.data.update(max_length=LENGTH, document_mask="one_document" not in case)
    config.train.update(batch_tokens=ROWS * LENGTH, precision="fp32")
    config.mesh.update(dict(zip(("data", "fsdp", "tensor", "context"), sizes, strict=True)))
    model = variant(name, vocab_size=32, d_model=32, n_layers=4, dropout=0.1, **changes)
    if hasattr(model, "n_positions"):
        model = dataclasses.replace(model, n_positions=LENGTH)
    return dataclasses.replace(parse(config), model=model)


def measured(case, sizes):
    """Returns loss and gradients on a mesh, the implementations in use, and the text of the program."""
    config = config_of(case, sizes)
    mesh = make_mesh(MeshConfig(*sizes), all_devices=False)
    task = LanguageModel(config, RandomText(config))
    task.check_mesh(mesh)
    params, batch = param_shardings(mesh, task.network.abstract, task.network.infos), batch_sharding(mesh)

    def loss(params, batch):
        return task.loss(params, batch, jax.random.key(1), jnp.int32(0))[0]

    with jax.set_mesh(mesh), kernels.recorded() as chosen:
        step = jax.jit(jax.value_and_grad(loss), in_shardings=(params, batch), out_shardings=(None, params))
        wide = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float64), task.network.abstract)
        compiled = step.lower(wide, task.batch_shapes(ROWS)).compile()
        rng = np.random.default_rng(1)
        values = jax.tree.map(lambda a: 0.2 * rng.normal(size=a.shape), wide)
        found = compiled(jax.device_put(values, params), put_batch(batch_of(), batch))
    return jax.device_get(found), chosen, compiled.as_text()


def compare(case):
    """Returns by mesh the difference from one device, the implementations, and how the program moves activations."""
    want, _, _ = measured(case, (1, 1, 1, 1))
    found = {}
    for mesh in CASES[case][2]:
        got, chosen, text = measured(case, MESHES[mesh])
        found[mesh] = {
            "difference": difference(got, want),
            "chosen": sorted(set().union(*(chosen.get(op, ()) for op in ("attention", "gravity")))),
            "permutes": len(re.findall(r" collective-permute(?:-start)?\(", text)),
            "gathered": gathered(text) if mesh == "context" else 0,
        }
    return found


def gathered(text):
    """Returns the number of elements of the largest all-gather of numbers that are not integers."""
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in ACTIVATIONS.findall(text)]
    return int(max(sizes, default=0))


if __name__ == "__main__":
    print(json.dumps({case: compare(case) for case in sys.argv[1:]}))
