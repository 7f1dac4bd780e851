"""Reads weights from a run's workdir, and writes a workdir from weights."""

import dataclasses
import os
import tempfile
from pathlib import Path

import jax
import numpy as np

from psann_jax.config import CheckpointConfig
from psann_jax.config.io import to_dict
from psann_jax.convert.weights import Training, Weights
from psann_jax.runs.restore import load_text_run
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.start import GIVEN, ORIGIN
from psann_jax.train.workdir import CHECKPOINTS, lock, write_config
from psann_jax.utils.buckets import Bucket
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import BucketUrl, given_location


def read_run(workdir: str | os.PathLike[str], step: int | str | None = None, *, ema_params: bool = False) -> Weights:
    """Reads the weights of a run.

    Args:
      workdir: of the run.
      step: a saved step, "best" by validation loss, or "last"; None is the last.
      ema_params: read the exponential moving average of the weights (train.ema_decay) instead.

    Raises:
      UserError: no such run or checkpoint, or a damaged one.
    """
    run = load_text_run(workdir, step, ema_params=ema_params)
    model = run.network.config
    params = jax.tree.map(np.asarray, jax.device_get(run.params))
    training = Training(run.step, run.data, _val_loss(workdir, run.step, "ema_loss" if ema_params else "loss"))
    return Weights(dataclasses.replace(run.config, model=model), params, run.tokenizer, training)


def _val_loss(workdir: str | os.PathLike[str], step: int, metric: str) -> float | None:
    """Returns the validation loss that a run recorded after a step; it is for information only."""
    location = given_location(workdir, "workdir")
    with tempfile.TemporaryDirectory(prefix="psann_jax-") as copy:
        if isinstance(location, BucketUrl):
            path, content = Path(copy) / METRICS, Bucket(location, "workdir").read(METRICS)
            path.write_bytes(content or b"")
        else:
            path = location / METRICS
        try:
            rows = read_metrics(path)
        except UserError:  # a damaged line
            return None
    losses = [row.get(metric) for row in rows if row.get("kind") == "eval" and row["step"] == step]
    return losses[-1] if losses else None


def write_run(workdir: str | os.PathLike[str], weights: Weights, origin: str) -> None:
    """Writes a workdir with the weights as its only checkpoint, of step 0, for inference but not for training.

    Args:
      workdir: new or empty.
      weights: with a tokenizer. The config of the run is theirs, with train.ema_decay=0.
      origin: where they come from; recorded in the checkpoint.

    Raises:
      UserError: the workdir is not empty or cannot be written, or there is no tokenizer.
    """
    workdir = Path(workdir)
    if weights.tokenizer is None:
        raise UserError(f"{origin}: has no tokenizer, which a run needs; give one with --tokenizer")
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"{workdir}: is not an empty directory; choose a new one")
    state = {"params": weights.params, "step": np.zeros((), np.int32)}
    # The checkpoint has no average of the weights, whatever the run that trained them had.
    config = dataclasses.replace(weights.config, train=dataclasses.replace(weights.config.train, ema_decay=0.0))
    metadata = {"config": to_dict(config), "data": f"imported from {origin}", ORIGIN: GIVEN}
    with lock(workdir, config), Checkpoints(workdir / CHECKPOINTS, CheckpointConfig()) as checkpoints:
        write_config(workdir, config)
        checkpoints.save(0, state, metadata=metadata, tokenizer=weights.tokenizer.to_bytes(), final=True)
