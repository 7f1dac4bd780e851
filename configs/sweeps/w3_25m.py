"""The screening of the Newton Gravity Transformer: its ablations and a transformer, one seed, 7 runs.

  psann-jax sweep --config=configs/sweeps/w3_25m.py

It needs an accelerator: a run is 246 M tokens of WikiText-103, and 2 CPU cores (AMD EPYC) train 916 to 982 tokens/s in
float32. docs/results/w3_25m_small has its results at a size for a CPU. The files in configs/w3_25m/ are its runs as
single experiments.
"""

from ml_collections import config_dict

from configs.shared import w3_25m_contenders, w3_25m_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    return sweep_config(w3_25m_sweep(), w3_25m_contenders(), seeds=(42,))
