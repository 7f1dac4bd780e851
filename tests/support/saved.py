"""Saved runs without training."""

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.config.io import to_dict
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.models.network import make_network
from psann_jax.train.checkpoints import Checkpoints

TOKENIZER = byte_tokenizer()


def save_run(workdir, config, losses):
    """Saves a checkpoint with random parameters and `TOKENIZER` for every step in `losses`; returns the parameters."""
    network = make_network(config, TOKENIZER.vocab_size)
    saved = {}
    with Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints:
        for step, loss in losses.items():
            rng = np.random.default_rng(step)
            params = jax.tree.map(
                lambda a, rng=rng: jnp.asarray(0.4 * rng.normal(size=a.shape), a.dtype), network.abstract
            )
            checkpoints.save(
                step,
                {"params": params, "step": jnp.int32(step)},
                metadata={"config": to_dict(config), "data": "text"},
                metrics={"val_loss": loss},
                tokenizer=TOKENIZER.to_bytes(),
            )
            saved[step] = params
    return saved
