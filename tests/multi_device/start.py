"""Moves parameters to a network with another vocabulary, a longer window and adapters, on one device and on eight."""

import json

import jax
import numpy as np

from psann_jax.config import Config, DataConfig, MeshConfig, TrainConfig
from psann_jax.convert.transfer import Transfer
from psann_jax.convert.vocabulary import VocabularyRows
from psann_jax.models.network import build, make_network
from psann_jax.nn.mesh import make_mesh
from psann_jax.nn.partition import param_shardings
from tests.support.variants import randomised, variant


def main():
    """Prints whether the parameters on eight devices are those on one, and sharded as the network's are."""
    counts = np.arange(45) % 3 + 1  # a vocabulary that no mesh divides
    ids = np.random.default_rng(0).integers(0, 38, counts.sum())
    source = build(variant("vanilla", vocab_size=37, n_positions=16))
    model = variant("vanilla", vocab_size=45, n_positions=24)
    train = TrainConfig(precision="fp32", lora_rank=2, batch_tokens=24)
    target = make_network(Config(model=model, data=DataConfig(max_length=24), train=train))
    given = randomised(source)
    results, sharded = [], []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*sizes), all_devices=False)
        transfer = Transfer(source, target, VocabularyRows(ids, counts, 9), "x")
        placed = jax.device_put(given, param_shardings(mesh, source.abstract, source.infos))
        params = transfer.apply(placed, mesh, 0)
        expected = param_shardings(mesh, target.abstract, target.infos)
        sharded += jax.tree.leaves(jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), params, expected))
        merged = jax.jit(target.lora.merge)(params)
        results.append(jax.tree.map(np.asarray, (params, merged)))
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max(initial=0)), *results)
    print(json.dumps({"difference": max(jax.tree.leaves(differences)), "sharded": all(sharded)}))


if __name__ == "__main__":
    main()
