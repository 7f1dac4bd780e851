"""All bases with equal tokens, FLOPs, parameters and seconds: 51 runs of the proxy.

  python -m psann_jax.bench sweep --config=configs/sweeps/same_cost.py

For an accelerator: on 2 CPU cores (AMD EPYC) one run takes 80 minutes in float32.
"""

from ml_collections import config_dict

from psann_jax.bench.sweeps import sweep_config
from psann_jax.recipes import proxy_sweep


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    bases = ("transformer", "respsann", "sgrpsann", "waveresnet")
    contenders: dict[str, dict[str, object]] = {base: {"model.base": base} for base in bases}
    contenders["waveresnet_interleave"] = {"model.base": "waveresnet", "model.wave.interleave": True}
    budgets = ("tokens", "flops", "parameters", "seconds")
    return sweep_config(proxy_sweep("transformer"), contenders, seeds=(1337, 1338, 1339), budgets=budgets)
