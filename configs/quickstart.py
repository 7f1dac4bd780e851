"""A small WaveResNet on the help texts and sources of Python's own standard library.

  python -m psann_jax.main --config=configs/quickstart.py

2 CPU cores (AMD EPYC): validation loss 8.35 before training and 4.55 after 300 updates (ppl 95, 1.72 bits per byte) on
Python 3.11; 16,800 tokens/s, 1.2 GB. It takes a minute and a half, including preparing the text.
"""

from ml_collections import config_dict

from psann_jax.config.io import default_config


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = default_config("waveresnet")
    config.model.update(d_model=128, n_layers=3, n_heads=4, d_mlp=512)
    config.model.wave.interleave = True
    config.data.max_length = 256
    config.data.valid_fraction = 0.03  # 1 % of the built-in text may be a single file
    config.data.tokenizer.vocab_size = 4096
    config.train.update(steps=300, batch_tokens=4096, lr=3e-3, warmup_steps=30, precision="fp32")
    config.eval.every = 100
    return config
