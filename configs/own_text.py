"""A small WaveResNet on a text of your own, such as a book: 1.2 M parameters, dropout against learning it by heart.

  psann-jax train --config=configs/own_text.py --config.data.sources=frankenstein.txt --workdir=runs/frankenstein

2 CPU cores (AMD EPYC), on the 419 KB of Frankenstein: validation loss 7.69 before training and 4.47 after 600 updates,
ten times through the book (ppl 88, 2.03 bits per byte); 134 s of processor time, 1.2 GB. The machine was busy with
other programs and reached 3,900 tokens/s; configs/quickstart.py, which has the same layers, reaches 16,800 on a free
one.
"""

from ml_collections import config_dict

from psann_jax.config.io import default_config


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = default_config("waveresnet")
    config.model.update(d_model=128, n_layers=3, n_heads=4, d_mlp=512, dropout=0.2)
    config.model.wave.interleave = True
    config.data.update(sources=("text.txt",), valid_fraction=0.05, max_length=256)
    config.data.tokenizer.vocab_size = 2048
    config.train.update(steps=600, batch_tokens=2048, lr=6e-3, warmup_steps=30, precision="fp32")
    config.eval.every = 100
    return config
