"""Creates a training state from given parameters on a mesh of eight devices and prints what differs, as JSON."""

import json

import jax
import numpy as np

from psann_jax.config import MeshConfig, TrainConfig
from psann_jax.models.network import build
from psann_jax.nn.mesh import make_mesh
from psann_jax.train.step import init_state, state_spec
from tests.support.variants import randomised, variant


def main():
    """Prints whether values and shardings are as expected, for host arrays and for arrays on one device."""
    network = build(variant("waveresnet"))
    config = TrainConfig(precision="fp32", ema_decay=0.9)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    spec = state_spec(network, config, mesh)
    given = randomised(network)
    found = {}
    for kind, params in (("host", jax.tree.map(np.asarray, given)), ("device", given)):
        state = init_state(network, config, spec, 0, params)
        equal = [
            jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), state[name], given)
            for name in ("params", "ema_params")
        ]
        sharded = jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), state, spec.shardings)
        split = any(len({str(s.index) for s in a.addressable_shards}) > 1 for a in jax.tree.leaves(state["params"]))
        found[kind] = {"equal": all(jax.tree.leaves(equal)), "sharded": all(jax.tree.leaves(sharded)), "split": split}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
