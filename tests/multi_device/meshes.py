"""Trains a few steps on several meshes of one process and prints the results as JSON.

Args: text or sudoku; a directory; names of meshes.
"""

import itertools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from psann_jax.bench.random_task import random_task
from psann_jax.config import MeshConfig
from psann_jax.config.io import default_config, parse
from psann_jax.nn.mesh import make_mesh
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.compilation import compile_steps
from psann_jax.train.evaluation import EvaluationSums
from psann_jax.train.mesh import put_batch
from psann_jax.train.optimizers import make_optimizer
from psann_jax.train.step import init_state
from tests.support.tiny import tiny_config

# Sizes of data, fsdp, tensor and context (of windows). 8 does not divide the vocabulary, 260 bytes.
MESHES = {
    "one": (1, 1, 1),
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "tensor": (1, 1, 8),
    "all": (2, 2, 2),
    "context": (1, 1, 1, 8),
    "context_and_all": (1, 2, 2, 2),
}
STEPS = 3


def results_on(mesh, task, config):
    """Returns losses and facts about sharding, and the optimizer state after the first update.

    That state holds the gradients and their squares, each times a constant.
    """
    compiled = compile_steps(task, config, mesh)
    with jax.set_mesh(mesh):
        state = init_state(task.network, config.train, compiled.spec, config.seed)
        losses, first = [], None
        for _, batch in zip(range(STEPS), task.train_batches(0), strict=False):
            state, metrics = compiled.train_step(state, put_batch(batch, compiled.batch))
            losses.append(float(metrics["loss"]))
            first = first or jax.device_get(state["opt_state"])
        sums = EvaluationSums(task.target_parts())
        for batch in itertools.islice(task.valid_batches(compiled.eval_batch_size), 2) if task.target_parts() else ():
            sums.add(jax.device_get(compiled.eval_step(state["params"], put_batch(batch, compiled.batch))))
    windows = sums.windows(STEPS, "")
    parts = {kind: found.losses() for kind, found in windows.parts.items()} if windows else {}
    optimizer = make_optimizer(config.train, task.network.infos, 0.0)
    alike = optax.tree_utils.tree_map_params(
        optimizer,
        lambda moment, param: moment.sharding.spec == param.sharding.spec,
        state["opt_state"],
        state["params"],
        transform_non_params=lambda _: None,
    )
    moments = jax.tree.leaves(alike)
    held = sum(p.addressable_shards[0].data.size for p in jax.tree.leaves(state["params"]))
    total = sum(p.size for p in jax.tree.leaves(state["params"]))
    facts = {"losses": losses, "moments": len(moments), "moments_match": all(moments), "held": held / total}
    return facts | {"parts": parts}, first


def difference(state, other):
    """Returns the largest difference between the moments of two optimizer states, relative to each array's maximum.

    Gradients that are zero apart from rounding, such as that of the key bias, are compared relative to all others.
    """
    worst = 0.0
    for name, least in (("mu", 1e-3), ("nu", 1e-6)):
        moments, others = (jax.tree.leaves(optax.tree_utils.tree_get(s, name)) for s in (state, other))
        floor = least * max(np.abs(b).max() for b in others)
        pairs = zip(moments, others, strict=True)
        worst = max(worst, *(float(np.abs(a - b).max() / max(np.abs(b).max(), floor)) for a, b in pairs))
    return worst


def text(workdir):
    """Returns a language model and its config."""
    config = tiny_config(
        Path(workdir),
        model__n_heads=8,
        model__d_mlp=40,
        model__wave__kernel=2,
        train__grad_accum=2,
        train__batch_tokens=512,
        train__label_smoothing=0.1,
        train__z_loss=1e-3,
    )
    return LanguageModel.load(config, progress=False), config


def sudoku(workdir):
    """Returns the Sudoku transformer with SAM and EMA parameters, and its config; needs no files."""
    del workdir
    config = default_config("sudoku")
    config.model.update(d_model=32, n_layers=2, n_heads=8, d_mlp=40, iterations=3, dropout=0.0)
    config.train.update(batch_tokens=81 * 16, grad_accum=2, precision="fp32", sam_rho=0.05, ema_decay=0.9)
    config = parse(config)
    return random_task(config), config


def main(kind, workdir, *meshes):
    """Prints a JSON object that maps the name of a mesh, "one" included, to its results."""
    task, config = {"text": text, "sudoku": sudoku}[kind](workdir)
    found = {
        name: results_on(make_mesh(MeshConfig(*MESHES[name]), all_devices=False), task, config)
        for name in ("one", *meshes)
    }
    _, one = found["one"]
    print(json.dumps({name: {**shown, "difference": difference(m, one)} for name, (shown, m) in found.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
