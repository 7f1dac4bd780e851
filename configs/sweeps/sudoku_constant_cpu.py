"""SAM and the curriculum without the cosine schedule, at a size for a CPU: 15 runs, about an hour on 2 cores.

  psann-jax sweep --config=configs/sweeps/sudoku_constant_cpu.py --jobs=2

The study found that both matter less with a cosine schedule; sudoku_study_cpu.py makes the same comparisons with it.
"""

from ml_collections import config_dict

from configs.shared import sudoku_contenders, sudoku_study_small
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = sudoku_study_small()
    common.train.update(schedule="constant", end_lr_ratio=0.1)  # a ratio other than the default would be refused
    contenders = sudoku_contenders(
        {"constant": {}, "sam": {"train.sam_rho": 0.05}, "reverse": {"data.curriculum": "reverse"}}
    )
    return sweep_config(common, contenders, seeds=(1, 2, 3, 4, 5))
