"""Three sizes, of 0.1, 0.4 and 1.6 million parameters without embeddings, with tokens in proportion: 36 runs.

  psann-jax sweep --config=configs/sweeps/ladder_cpu.py "--config.data.sources=('books/*.txt',)"

All have one learning rate, so tune it before you trust a trend. An update of the largest transformer takes 0.56 s of
processor time (AMD EPYC); estimated from that, the sweep takes about 6 hours on 2 cores, mostly for the largest size.
"""

from ml_collections import config_dict

from configs.shared import ladder_rungs, small_contenders, small_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    names = ("transformer", "respsann", "waveresnet_interleave")
    contenders = {name: settings for name, settings in small_contenders().items() if name in names}
    common = small_sweep()
    common.data.update(document="file", valid_fraction=0.02)
    common.eval.update(every=0, max_tokens=0)
    return sweep_config(common, contenders, seeds=(1, 2, 3, 4), rungs=ladder_rungs())
