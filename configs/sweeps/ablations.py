"""What waveresnet has and the transformer has not, each alone: 24 runs of the proxy.

  python -m psann_jax.bench sweep --config=configs/sweeps/ablations.py

For an accelerator: on 2 CPU cores (AMD EPYC) one run takes 80 minutes in float32.
"""

from ml_collections import config_dict

from psann_jax.bench.sweeps import sweep_config
from psann_jax.recipes import proxy_sweep


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    # respsann is waveresnet without its wave; each line takes one thing from it, or gives it one more.
    base: dict[str, object] = {"model.base": "respsann"}
    contenders: dict[str, dict[str, object]] = {
        "respsann": base,
        "gelu": base | {"model.mlp_activation": "gelu"},
        "layer_norm": base | {"model.norm": "layernorm"},
        "no_alpha": base | {"model.residual_alpha": False},
        "frozen_sine": base | {"model.sine.trainable": False},
        "wave_interleave": {"model.base": "waveresnet", "model.wave.interleave": True},
        "wave_replace": {"model.base": "waveresnet", "model.wave.replace": True},
        "transformer": {"model.base": "transformer"},
    }
    return sweep_config(proxy_sweep("respsann"), contenders, seeds=(1337, 1338, 1339))
