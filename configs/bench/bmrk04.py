"""BMRK-04: the bases compared on WikiText-103 by loss, accuracy, speed, memory and standard tasks: 25 runs.

  psann-jax sweep --config=configs/bench/bmrk04.py \
      --with_lm_eval --lm_eval_tasks=lambada_openai,hellaswag --lm_eval_limit=256

It needs an accelerator: one run takes 80 minutes on 2 CPU cores (AMD EPYC) in float32.
"""

from ml_collections import config_dict

from configs.shared import proxy_contenders, proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    return sweep_config(proxy_sweep("transformer"), proxy_contenders(), seeds=(1337, 1338, 1339, 1340, 1341))
