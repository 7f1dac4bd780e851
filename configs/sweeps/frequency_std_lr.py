"""The sine's initial frequency, its spread and the rate, 27 settings of waveresnet: 135 runs of the 13 M proxy.

  psann-jax sweep --config=configs/sweeps/frequency_std_lr.py

The reference has the default frequency and spread and the highest rate. With 26 comparisons in one report, a difference
needs a p value below 0.002 for a verdict, so only large ones get one.

It needs an accelerator: one run takes 80 minutes on 2 CPU cores (AMD EPYC) in float32.
"""

import itertools

from ml_collections import config_dict

from configs.shared import proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    contenders = {
        f"waveresnet_freq_init{frequency}_freq_init_std{std}_lr{lr}": {
            "model.sine.freq_init": frequency,
            "model.sine.freq_init_std": std,
            "train.lr": lr,
        }
        for frequency, std, lr in itertools.product((2.25, 2.0, 1.75), (0.25, 0.0, 0.5), (2.2e-3, 2.0e-3, 1.8e-3))
    }
    return sweep_config(proxy_sweep("waveresnet"), contenders, seeds=(1337, 1338, 1339, 1340, 1341))
