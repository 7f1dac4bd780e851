"""The transformer and waveresnet with equal tuning, six learning rates each: 12 runs to choose, 10 to compare.

  psann-jax sweep --config=configs/sweeps/same_tuning.py

Runs of the 13 M proxy on WikiText-103. They need an accelerator: one takes 80 minutes on 2 CPU cores (AMD EPYC) in
float32. The rates are chosen on held-out training text; the validation text is for the comparison alone.
"""

from ml_collections import config_dict

from configs.shared import proxy_sweep
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.experiments.tuning import Tuning


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    contenders = {base: {"model.base": base} for base in ("transformer", "waveresnet")}
    tuning = Tuning({"train.lr": (3e-4, 6e-4, 1.2e-3, 1.8e-3, 2.4e-3, 3.6e-3)}, seeds=(1336,), valid_fraction=0.01)
    return sweep_config(proxy_sweep("transformer"), contenders, seeds=(1337, 1338, 1339, 1340, 1341), tuning=tuning)
