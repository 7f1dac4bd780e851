"""BMRK-01: two epochs of 60 MB of public-domain books with the small WaveResNet: 1 run.

  psann-jax sweep --config=configs/bench/bmrk01.py \
      --config.data.sources="('books.train.txt',)" --config.data.valid_sources="('books.valid.txt',)"

These 61 MB (129 books, one paragraph per line) are 13,573 windows; an update takes 128 of them, so an epoch has 106
updates. Training prints the number of windows of another text. The folder runs/waveresnet_seed1 in the sweep's workdir
holds metrics.json and loss_curve.png.

It needs an accelerator: 2 CPU cores (AMD EPYC) train about this model with 940 tokens/s (configs/waveresnet_small.py),
so 212 updates would take eight hours.
"""

from ml_collections import config_dict

from psann_jax.config.io import default_config
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = default_config("waveresnet")
    common.model.update(d_model=512, n_layers=8, n_heads=8, d_mlp=2048)
    common.model.wave.interleave = True
    common.data.update(sources=("books.train.txt",), valid_sources=("books.valid.txt",), max_length=1024)
    common.data.tokenizer.vocab_size = 32000
    common.train.update(steps=212, batch_tokens=131_072, grad_accum=4, lr=2e-3, warmup_steps=20, remat="block")
    common.eval.update(every=106, max_tokens=1_000_000)
    return sweep_config(common, {"waveresnet": {"model.base": "waveresnet"}}, seeds=(1,))
