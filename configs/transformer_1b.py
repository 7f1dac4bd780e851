"""A transformer of 940 M parameters for eight GPUs or a TPU slice: 524,288 tokens per update.

  python -m psann_jax.main --config=configs/transformer_1b.py --config.data.sources=/data/text/*.txt

The parameters and the optimizer's state are divided over all devices (mesh.fsdp); the backward pass recomputes each
block. Another base: --config.model.base=waveresnet --config.model.wave.interleave=True. What it takes on H100s and on
TPUs, by compilation, is in docs/accelerators.md; its loss and its tokens/s have not been measured.
"""

from ml_collections import config_dict

from configs.shared import large


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = large(d_model=2048, n_layers=16, n_heads=16)
    config.train.update(steps=40_000, batch_tokens=524_288, grad_accum=4, lr=2e-4, warmup_steps=2000, remat="block")
    config.mesh.update(data=1, fsdp=-1)
    return config
