"""Trains small models with sample texts on a mesh, in one process or several."""

import dataclasses
import sys
from pathlib import Path

from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.processes import join
from tests.support.tiny import tiny_config
from tests.support.variants import variant


def main(directory, names, *mesh):
    """Trains two updates of each model, in the folder of its name.

    Args:
      directory: of the text and the workdirs.
      names: of variants, with commas.
      *mesh: sizes of mesh axes, such as fsdp=2, and sequence.
    """
    sizes = {f"mesh__{axis}": int(size or 1) for axis, _, size in (given.partition("=") for given in mesh)}
    if "mesh__sequence" in sizes:
        sizes["mesh__sequence"] = True
    tiny = tiny_config(Path(directory), train__steps=2, eval__prompts=("the sun", ""), **sizes)
    join(timeout_s=60)
    for name in names.split(","):
        config = dataclasses.replace(tiny, model=variant(name, vocab_size=260))
        loop.train(config, lambda config=config: LanguageModel.load(config, progress=False), Path(directory, name))


if __name__ == "__main__":
    main(*sys.argv[1:])
