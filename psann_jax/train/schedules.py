"""Learning rate schedules as pure functions of the step, so that a resumed run needs no schedule state."""

import jax
import jax.numpy as jnp

from psann_jax.config import TrainConfig


def learning_rate(step: int | jax.Array, config: TrainConfig) -> jax.Array:
    """Returns the learning rate of one update: a linear warm-up to `lr`, then `config.schedule`.

    With ``s = step + 1``, ``w = warmup_steps``, ``T = steps``, ``p = lr`` and ``r = end_lr_ratio``, the rate is
    ``p * s / w`` up to ``s = w``. Afterwards it depends on the schedule:

    - cosine: ``p * (r + (1 - r) * (1 + cos(pi * (s - w) / (T - w))) / 2)``;
    - linear: from ``p`` at ``s = w`` to ``r * p`` at ``s = T``;
    - constant: ``p``;
    - wsd (warm-up, stable, decay): ``p``, then linearly to ``r * p`` at ``s = T`` over the last
      ``round(decay_fraction * T)`` steps; a decay that would begin inside the warm-up begins at its end.

    With a decay, the last update, ``s = T``, has the rate ``r * p``, and so have later ones. If ``T <= w``, the run
    consists of warm-up only.

    Args:
      step: 0-based number of the update, a Python int or a traced integer scalar.
      config: the training section.

    Returns:
      float32 scalar.
    """
    s = jnp.asarray(step, jnp.float32) + 1
    warmup, total = config.warmup_steps, config.steps
    warmup_factor = jnp.minimum(s / max(warmup, 1), 1)
    decay_start = warmup
    if config.schedule == "wsd":
        decay_start = max(warmup, total - round(config.decay_fraction * total))
    if config.schedule == "constant" or total <= decay_start:
        return config.lr * warmup_factor
    progress = jnp.clip((s - decay_start) / (total - decay_start), 0, 1)
    remaining = (1 + jnp.cos(jnp.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    floor = config.end_lr_ratio
    return config.lr * warmup_factor * (floor + (1 - floor) * remaining)
