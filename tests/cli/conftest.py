"""Fixtures that the tests of several commands share."""

from functools import partial

import pytest

from psann_jax.config.io import default_config, parse
from psann_jax.tasks.sudoku import SudokuTask
from psann_jax.train.loop import train


@pytest.fixture(scope="session")
def sudoku_run(tmp_path_factory):
    """A run of two updates on puzzles, with an EMA of the weights; tests leave its checkpoint as it is."""
    folder = tmp_path_factory.mktemp("sudoku_run")
    config = default_config("sudoku")
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=16, iterations=2)
    config.data.update(counts=(120, 40, 0, 0, 0), extra_clues=30, curriculum="mixed", valid_fraction=0.2)
    config.data.cache_dir = str(folder / "cache")
    config.train.update(steps=2, batch_tokens=81 * 8, warmup_steps=0, precision="fp32", ema_decay=0.5)
    config = parse(config)
    train(config, partial(SudokuTask.load, config, progress=False), folder / "run")
    return folder / "run"
