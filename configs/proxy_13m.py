"""The 13 M proxy of the base sweeps of 2025-12; another base with --config.model.base=transformer.

  python -m psann_jax.main --config=configs/proxy_13m.py

2 CPU cores (AMD EPYC): 3,500 tokens/s and 2.6 GB in float32 (--config.train.precision=fp32), so its 16.4 M tokens take
80 minutes; validation loss 9.7 before, 9.1 after 12 updates of the warm-up, on 60 MB of books. The loss of the whole
run has not been measured yet.
"""

from ml_collections import config_dict

from psann_jax.config_io import default_config


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = default_config("waveresnet")
    config.model.update(d_model=256, n_layers=6, n_heads=4, d_mlp=1024)
    config.data.max_length = 1024
    config.data.tokenizer.vocab_size = 16384
    config.train.update(steps=500, batch_tokens=32768, grad_accum=4, lr=2.4e-3, warmup_steps=100)
    config.train.log_every = 25
    config.eval.max_tokens = 1_000_000
    return config
