"""The questions of the Sudoku study at a size for a CPU: 75 runs, about 5 hours on 2 cores (AMD EPYC), by 10 of them.

  psann-jax sweep --config=configs/sweeps/sudoku_study_cpu.py --jobs=2

The reference is the quickstart with puzzles of all ratings: cosine schedule, AdamW, ReLU, all ratings mixed. Every
other contender changes one thing. Notes on the report:

- Its losses are means over the iterations of a run, so those of iterations_2 and iterations_8 mean something else and
  have no verdict; compare their fractions of solved puzzles.
- All runs also evaluate an exponential moving average of their weights, which does not affect the weights themselves:
  val_ema_loss and val_ema_solved in the summary.json of each run.
- Updates and puzzles are equal except in steps_2857 and steps_8000, which are 5/7 and 2 times the reference's, as in
  the study; the report gives their differences, but no verdict.
- sam, steps_8000 and iterations_8 take about twice the time.
"""

from ml_collections import config_dict

from configs.shared import sudoku_contenders, sudoku_study_small
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    contenders = sudoku_contenders(
        {
            "cosine": {},
            "constant": {"train.schedule": "constant", "train.end_lr_ratio": 0.1},
            "sam": {"train.sam_rho": 0.05},
            "no_decay": {"train.weight_decay": 0.0},
            "decay_on_all": {"train.weight_decay_on": "all"},
            "decay_1": {"train.weight_decay": 1.0},
            "gelu": {"model.mlp_activation": "gelu"},
            "relu2": {"model.mlp_activation": "relu2"},
            "sine": {"model.mlp_activation": "sine"},
            "reverse": {"data.curriculum": "reverse"},
            "regular": {"data.curriculum": "regular"},
            "steps_2857": {"train.steps": 2857},
            "steps_8000": {"train.steps": 8000},
            "iterations_2": {"model.iterations": 2},
            "iterations_8": {"model.iterations": 8},
        }
    )
    return sweep_config(sudoku_study_small(), contenders, seeds=(1, 2, 3, 4, 5))
