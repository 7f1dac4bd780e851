"""All bases at a size for a CPU: half a million parameters without the embeddings, three seeds: 18 runs.

python -m psann_jax.bench sweep --config=configs/sweeps/bases_cpu.py
"""

from typing import Any

from ml_collections import config_dict

from psann_jax.bench.sweeps import sweep_config
from psann_jax.config_io import default_config


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    common = default_config("transformer")
    common.model.update(d_model=128, n_layers=3, n_heads=4, d_mlp=512)
    common.data.max_length = 256
    common.data.tokenizer.vocab_size = 4096
    common.train.update(steps=400, batch_tokens=4096, lr=3e-3, warmup_steps=40, precision="fp32")
    common.eval.update(every=100, max_tokens=131_072)
    contenders: dict[str, dict[str, Any]] = {
        base: {"model.base": base} for base in ("transformer", "respsann", "sgrpsann", "waveresnet")
    }
    contenders["waveresnet_interleave"] = {"model.base": "waveresnet", "model.wave.interleave": True}
    contenders["ngt"] = {"model.base": "ngt"}
    return sweep_config(common, contenders, seeds=(1, 2, 3))
