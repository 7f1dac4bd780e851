"""Samples from one model on several meshes of one process, greedily and with a seed; prints JSON.

Args: names of meshes.
"""

import json
import sys

import jax
import numpy as np

from psann_jax.config import MeshConfig
from psann_jax.models import network as registry
from psann_jax.nn.mesh import make_mesh
from psann_jax.sample.generation import generate
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.settings import Sampling
from tests.support.variants import SIZES, variant

MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "tensor": (1, 1, 4), "all": (2, 2, 2)}
MODELS = {
    "waveresnet_dilated": {"vocab_size": 32},
    "sgrpsann": {"vocab_size": 31},  # no mesh divides 31
    "waveresnet_interleave_window": {"vocab_size": 32, "d_model": 32, "n_heads": 8, "n_kv_heads": 4},
}
COMPILED = []  # one entry per compilation


def model_of(name):
    """Returns a network and random parameters."""
    network = registry.build(variant(name, **MODELS[name], n_layers=1))
    rng = np.random.default_rng(0)
    return network, jax.tree.map(lambda a: (0.3 * rng.normal(size=a.shape)).astype(np.float32), network.abstract)


def texts_on(sizes, name):
    """Returns the sampled tokens, and the fractions of parameters and cache that one device holds."""
    network, params = model_of(name)
    sampler = Sampler(network, params, eos_id=2, max_length=24, mesh=make_mesh(MeshConfig(*sizes), all_devices=False))
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, SIZES["vocab_size"], n).tolist() for n in (1, 9, 4)]
    options = {"max_new_tokens": 30, "overflow": "slide"}
    tokens = [row.tokens for row in generate(sampler, prompts, Sampling(temperature=0), **options)]
    before = len(COMPILED)
    tokens += [row.tokens for row in generate(sampler, prompts, Sampling(temperature=1.5, top_p=0.9), **options)]
    recompiled = len(COMPILED) - before
    state = sampler.init_state(np.zeros(8, np.int32), np.zeros((8, MODELS[name]["vocab_size"]), bool), 24)
    return {
        "tokens": tokens,
        "recompiled": recompiled,
        "params": fraction_held(sampler._params),
        "cache": fraction_held({name: state["cache"]["layers"][0][name] for name in ("k", "v")}),
    }


def fraction_held(arrays):
    """Returns the fraction of all elements that is on the first device."""
    leaves = jax.tree.leaves(arrays)
    return sum(a.addressable_shards[0].data.size for a in leaves) / sum(a.size for a in leaves)


if __name__ == "__main__":
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: (
            COMPILED.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    meshes = {mesh: MESHES[mesh] for mesh in ("one", *sys.argv[1:])}
    print(json.dumps({mesh: {name: texts_on(sizes, name) for name in MODELS} for mesh, sizes in meshes.items()}))
