"""A transformer of 370 M parameters for one GPU or a small TPU slice: 262,144 tokens per update.

  python -m psann_jax.main --config=configs/transformer_350m.py --config.data.sources=/data/text/*.txt

Another base: --config.model.base=waveresnet --config.model.wave.interleave=True. 157,450 tokens/s on an H200; what
it takes on an H100 and on TPUs, by compilation, is in docs/accelerators.md. Its loss has not been measured.
"""

from ml_collections import config_dict

from configs.shared import large


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = large(d_model=1024, n_layers=24, n_heads=16)
    config.train.update(steps=30_000, batch_tokens=262_144, grad_accum=8, lr=3e-4, warmup_steps=2000)
    return config
