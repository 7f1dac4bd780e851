"""The training core: loop, step, optimizers, sharding, checkpoints, metrics."""
