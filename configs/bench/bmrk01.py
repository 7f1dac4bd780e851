"""BMRK-01: two epochs over 60 MB of public-domain books with the small WaveResNet.

  psann-jax sweep --config=configs/bench/bmrk01.py \
      --config.common.data.sources="('books.train.txt',)" --config.common.data.valid_sources="('books.valid.txt',)"

An epoch of these 61 MB (129 books, a paragraph a line) is 13,573 windows, or 106 updates; with another text, training
names its windows, of which an update takes 128. The run's folder in `runs` holds metrics.json and loss_curve.png.

For an accelerator: the same model has 940 tokens/s on 2 CPU cores (AMD EPYC, configs/waveresnet_small.py), with which
212 updates would take eight hours.
"""

from ml_collections import config_dict

from psann_jax.config.io import default_config
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    common = default_config("waveresnet")
    common.model.update(d_model=512, n_layers=8, n_heads=8, d_mlp=2048)
    common.data.update(sources=("books.train.txt",), valid_sources=("books.valid.txt",), max_length=1024)
    common.data.tokenizer.vocab_size = 32000
    common.train.update(steps=212, batch_tokens=131_072, grad_accum=4, lr=2e-3, warmup_steps=20, remat="block")
    common.eval.update(every=106, max_tokens=1_000_000)
    return sweep_config(common, {"waveresnet": {"model.base": "waveresnet"}}, seeds=(1,))
