"""BMRK-04: the bases side by side on WikiText-103, by loss, accuracy, speed, memory and standard tasks: 15 runs.

  psann-jax sweep --config=configs/bench/bmrk04.py \
      --with_lm_eval --lm_eval_tasks=lambada_openai,hellaswag --lm_eval_limit=256

For an accelerator: on 2 CPU cores (AMD EPYC) one run takes 80 minutes in float32.
"""

from ml_collections import config_dict

from configs.shared import proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    bases = ("transformer", "respsann", "sgrpsann", "waveresnet")
    contenders: dict[str, dict[str, object]] = {base: {"model.base": base} for base in bases}
    contenders["waveresnet_interleave"] = {"model.base": "waveresnet", "model.wave.interleave": True}
    return sweep_config(proxy_sweep("transformer"), contenders, seeds=(1337, 1338, 1339))
