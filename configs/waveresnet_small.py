"""The small WaveResNet: 60 M parameters, 131,072 tokens per update, in micro-batches that fit a laptop's memory.

  python -m psann_jax.main --config=configs/waveresnet_small.py
  python -m psann_jax.main --config=configs/waveresnet_small.py --config.train.steps=2    # a short test on a CPU

Until 0.2.0 it had no wave blocks (58 M parameters). That network was measured on 2 CPU cores (AMD EPYC): 940 tokens/s
and 5.6 GB, so the test of two updates takes five minutes. The wave blocks add 5 % to the computation. The whole run
needs an accelerator, with --config.train.grad_accum=1; its speed on an H200 is in docs/accelerators.md, its
loss there has not been measured.
"""

from ml_collections import config_dict

from psann_jax.config.io import default_config


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = default_config("waveresnet")
    config.model.update(d_model=512, n_layers=8, n_heads=8, d_mlp=2048)
    config.model.wave.interleave = True
    config.data.max_length = 1024
    config.data.tokenizer.vocab_size = 32000
    config.train.update(steps=10_000, batch_tokens=131_072, grad_accum=16, lr=2e-4, warmup_steps=2000)
    config.train.update(weight_decay=0.01, grad_clip=1.0, precision="bf16")
    config.eval.update(every=500, max_tokens=1_000_000)
    return config
