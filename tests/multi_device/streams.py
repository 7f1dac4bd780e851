"""Trains the tiny model on a stream and stops at a step, as a signal would; in one process or several."""

import sys
from pathlib import Path

import jax

from psann_jax.data import stream_windows
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.processes import join
from tests.support.tiny import tiny_config


def main(directory, workdir, stop, *mesh):
    """Trains until a step, and writes which documents each process read.

    Args:
      directory: of the texts, part-*.jsonl and valid.jsonl.
      workdir: of the run.
      stop: the step at which to stop.
      *mesh: sizes of mesh axes, such as tensor=2.
    """
    overrides = {f"mesh__{axis}": int(size) for axis, size in (item.split("=") for item in mesh)}
    config = tiny_config(
        Path(directory),
        model__n_heads=8,
        data__sources=(f"{directory}/part-*.jsonl",),
        data__valid_sources=(f"{directory}/valid.jsonl",),
        data__valid_fraction=0.01,
        data__stream=True,
        data__shuffle_buffer=16,
        **overrides,
    )
    join(timeout_s=60)
    stream_windows._BATCH_CHARACTERS = 200
    loop.StopSignals.should_stop = lambda self, step: step == int(stop)
    read = []
    encode = stream_windows.encode_documents

    def recorded(texts, tokenizer):
        read.extend(texts)
        return encode(texts, tokenizer)

    stream_windows.encode_documents = recorded
    loop.train(config, lambda: LanguageModel.load(config, progress=False), Path(workdir))
    Path(workdir, f"read_{jax.process_index()}.txt").write_text("\n".join(read))


if __name__ == "__main__":
    main(*sys.argv[1:])
