"""Trains the tiny model and stops at a step, as a signal would; in one process or several."""

import sys
from pathlib import Path

import jax

from psann_jax.nn.mesh import make_mesh
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.mesh import batch_sharding
from psann_jax.train.mirror import local_workdir
from psann_jax.train.processes import join
from psann_jax.utils.locations import given_location
from tests.support.tiny import tiny_config


def main(directory, workdir, stop, *mesh):
    """Trains until a step.

    Args:
      directory: of the text.
      workdir: of the run, a path or a URL.
      stop: the step at which to stop.
      *mesh: sizes of mesh axes, such as fsdp=2; "scattered" for a mesh in which the devices of a process are no
        neighbours, as on TPU hosts.
    """
    sizes = dict(size.split("=") for size in mesh if size != "scattered")
    overrides = {f"mesh__{axis}": int(size) for axis, size in sizes.items()}
    config = tiny_config(Path(directory), model__n_heads=8, **overrides)
    join(timeout_s=60)
    loop.StopSignals.should_stop = lambda self, step: step == int(stop)
    if "scattered" in mesh:
        devices = sorted(jax.devices(), key=lambda device: (device.id % 2, device.process_index))
        loop.make_mesh = lambda sizes: make_mesh(sizes, devices=devices)
        assert loop.local_batch_shard(batch_sharding(loop.make_mesh(config.mesh))).parts[:2] != (0, 1)
    with local_workdir(given_location(workdir, "workdir"), Path(directory)) as local:
        loop.train(config, lambda: LanguageModel.load(config, progress=False), local)


if __name__ == "__main__":
    main(*sys.argv[1:])
