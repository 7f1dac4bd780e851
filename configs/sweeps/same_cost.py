"""All bases with equal tokens, FLOPs, parameters and seconds: 51 runs of the proxy.

  psann-jax sweep --config=configs/sweeps/same_cost.py

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
    budgets = ("tokens", "flops", "parameters", "seconds")
    return sweep_config(proxy_sweep("transformer"), contenders, seeds=(1337, 1338, 1339), budgets=budgets)
