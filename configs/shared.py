"""Settings that the config files of one experiment share."""

from ml_collections import config_dict

from psann_jax.config.io import default_config

_WIKITEXT_103 = "hf:Salesforce/wikitext/wikitext-103-raw-v1"


def proxy_13m(base: str) -> config_dict.ConfigDict:
    """The proxy of the base sweeps of 2025-12: 13 M parameters, 16.4 M tokens.

    Args:
      base: transformer, respsann, sgrpsann or waveresnet.
    """
    config = default_config(base)
    config.model.update(d_model=256, n_layers=6, n_heads=4, d_mlp=1024)
    config.data.max_length = 1024
    config.data.tokenizer.vocab_size = 16384
    config.train.update(steps=500, batch_tokens=32768, grad_accum=4, lr=2.4e-3, warmup_steps=100)
    config.train.log_every = 25
    config.eval.max_tokens = 1_000_000
    return config


def proxy_sweep(base: str) -> config_dict.ConfigDict:
    """What the runs of the base sweeps have in common: the proxy on WikiText-103, evaluated every 100 updates."""
    config = proxy_13m(base)
    config.data.update(sources=(_WIKITEXT_103,), valid_sources=(f"{_WIKITEXT_103}@validation",))
    config.train.lr = 2.2e-3
    config.eval.every = 100
    return config


def small_sweep() -> config_dict.ConfigDict:
    """What the sweeps for 2 CPU cores share: half a million parameters without the embeddings, 1.64 M tokens."""
    config = default_config("transformer")
    config.model.update(d_model=128, n_layers=3, n_heads=4, d_mlp=512)
    config.data.max_length = 256
    config.data.tokenizer.vocab_size = 4096
    config.train.update(steps=400, batch_tokens=4096, lr=3e-3, warmup_steps=40, precision="fp32")
    config.eval.update(every=100, max_tokens=131_072)
    return config


def small_contenders() -> dict[str, dict[str, object]]:
    """The bases of the sweeps for 2 CPU cores; waveresnet without its wave would be respsann."""
    contenders: dict[str, dict[str, object]] = {
        base: {"model.base": base} for base in ("transformer", "respsann", "sgrpsann", "ngt")
    }
    contenders["waveresnet_interleave"] = {"model.base": "waveresnet", "model.wave.interleave": True}
    return contenders


def ablations() -> dict[str, dict[str, object]]:
    """respsann, which is waveresnet without its wave; it with one thing less each, or one more; and the transformer."""
    base: dict[str, object] = {"model.base": "respsann"}
    return {
        "respsann": base,
        "gelu": base | {"model.mlp_activation": "gelu"},
        "layer_norm": base | {"model.norm": "layernorm"},
        "no_alpha": base | {"model.residual_alpha": False},
        "frozen_sine": base | {"model.sine.trainable": False},
        "wave_interleave": {"model.base": "waveresnet", "model.wave.interleave": True},
        "wave_replace": {"model.base": "waveresnet", "model.wave.replace": True},
        "transformer": {"model.base": "transformer"},
    }


def w3_25m(base: str) -> config_dict.ConfigDict:
    """The screening of the Newton Gravity Transformer on WikiText-103: 25 M parameters, 15,000 updates.

    Args:
      base: ngt or vanilla.
    """
    config = default_config(base)
    config.seed = 42
    config.model.update(d_model=512, n_layers=8, n_heads=8, n_positions=512, dropout=0.1, init="reference")
    config.data.update(sources=(_WIKITEXT_103,), valid_sources=(f"{_WIKITEXT_103}@validation",))
    config.data.update(max_length=512, document_mask=False)
    config.data.tokenizer.update(kind="bpe", vocab_size=8192)
    config.train.update(steps=15_000, batch_tokens=16 * 512 * 2, grad_accum=2, lr=3e-4, warmup_steps=2000)
    config.train.update(betas=(0.9, 0.999), weight_decay_on="all", end_lr_ratio=0.0)
    config.eval.every = 500
    if base == "ngt":
        config.model.rsqrt = True
        # The original's 0.05, of which one of its two micro-batches has half.
        config.model.repulsion.update(weight=0.025, interval=4)
    return config


def sudoku(
    *,
    steps: int = 70_000,
    warmup_steps: int = 2000,
    lr: float = 1.5e-3,
    puzzles: int = 4096,
    sam_rho: float = 0.0,
    activation: str = "relu",
) -> config_dict.ConfigDict:
    """The iterative Sudoku transformer as the study trained it: 800,393 parameters, hardest puzzles first.

    Its 2.7 million puzzles of sudoku-extreme are replaced by generated ones under random symmetries; with the files at
    hand, set data.files, data.valid_files and data.augment. Iterations are computed twice, to save memory: a step with
    4,096 puzzles in bf16 needs 22.4 GiB of temporary memory, by XLA's account on its CPU backend.

    Args:
      steps: updates.
      warmup_steps: of them.
      lr: its peak; it ends at 1 % of that.
      puzzles: in a batch.
      sam_rho: 0.05 in the study's runs with sharpness-aware minimisation.
      activation: of the MLPs.
    """
    config = default_config("sudoku")
    config.seed = 42
    config.model.mlp_activation = activation
    config.train.update(steps=steps, warmup_steps=warmup_steps, lr=lr, batch_tokens=81 * puzzles, end_lr_ratio=0.01)
    config.train.update(weight_decay_on="all", grad_clip=0.0, sam_rho=sam_rho, remat="iteration", log_every=100)
    config.eval.every = 5000
    config.checkpoint.every = 1000
    return config


def sudoku_quickstart() -> config_dict.ConfigDict:
    """A small iterative transformer that learns easy puzzles in minutes on a CPU."""
    config = default_config("sudoku")
    config.model.update(d_model=64, n_layers=2, n_heads=4, d_mlp=128, iterations=4, dropout=0.0)
    # Up to 45 of the empty cells filled in: from such puzzles the rules are learnt soonest.
    config.data.update(counts=(10_000, 0, 0, 0, 0), extra_clues=45, curriculum="mixed", valid_fraction=0.04)
    config.train.update(steps=4000, batch_tokens=81 * 32, lr=3e-3, warmup_steps=50, end_lr_ratio=0.01)
    config.train.update(precision="fp32", scan_layers=False, log_every=100)
    config.eval.every = 500
    return config
