"""Settings that several config files share."""

from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from psann_jax.config.io import default_config
from psann_jax.experiments.sweeps import contender_config

_WIKITEXT_103 = "hf:Salesforce/wikitext/wikitext-103-raw-v1"
WIKITEXT_2 = "hf:Salesforce/wikitext/wikitext-2-raw-v1"
# For experiments on the built-in text: of its 460 documents, 1 % may be a single file.
BUILTIN_FRACTION = 0.03


# --- the 13 M proxy -------------------------------------------------------------------------------------


def proxy_13m(base: str) -> config_dict.ConfigDict:
    """Returns the proxy of the base sweeps of December 2025: 13 M parameters, 16.4 M tokens.

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
    """Returns what the runs of the base sweeps share: the proxy on WikiText-103, evaluated every 100 updates."""
    config = proxy_13m(base)
    config.data.update(sources=(_WIKITEXT_103,), valid_sources=(f"{_WIKITEXT_103}@validation",))
    config.train.lr = 2.2e-3
    config.eval.every = 100
    return config


def proxy_contenders() -> dict[str, dict[str, Any]]:
    """Returns the decoder bases; waveresnet both as it is by default and with interleaved wave blocks."""
    return _by_base("transformer", "respsann", "sgrpsann", "waveresnet") | _INTERLEAVED


# --- sizes for accelerators ------------------------------------------------------------------------------


def large(d_model: int, n_layers: int, n_heads: int) -> config_dict.ConfigDict:
    """Returns a transformer with windows of 2048 tokens in bf16; steps, batch and rate are left to the caller."""
    config = default_config("transformer")
    config.model.update(d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_mlp=4 * d_model)
    config.data.max_length = 2048
    config.data.tokenizer.vocab_size = 32000
    config.train.update(weight_decay=0.1, grad_clip=1.0, precision="bf16")
    config.eval.update(every=500, max_tokens=4_000_000)
    return config


# --- sizes for a CPU ------------------------------------------------------------------------------------


def small(base: str) -> config_dict.ConfigDict:
    """Returns an experiment that a CPU trains in minutes: half a million parameters without the embeddings.

    Args:
      base: any base that trains on text.
    """
    config = _small(base)
    config.data.valid_fraction = BUILTIN_FRACTION
    return config


def small_sweep() -> config_dict.ConfigDict:
    """Returns what the sweeps for a CPU share: `small` with 1.64 M training tokens; they choose the validation text."""
    config = _small("transformer")
    config.train.update(steps=400, warmup_steps=40)
    config.eval.max_tokens = 131_072
    return config


def _small(base: str) -> config_dict.ConfigDict:
    config = default_config(base)
    config.model.update(d_model=128, n_layers=3, n_heads=4, d_mlp=512)
    config.data.max_length = 256
    config.data.tokenizer.vocab_size = 4096
    config.train.update(steps=300, batch_tokens=4096, lr=3e-3, warmup_steps=30, precision="fp32")
    config.eval.every = 100
    return config


def small_contenders() -> dict[str, dict[str, Any]]:
    """Returns the bases of the sweeps for a CPU; waveresnet without a wave block would equal respsann."""
    return _by_base("transformer", "respsann", "sgrpsann", "ngt") | _INTERLEAVED


def ladder_rungs() -> dict[str, dict[str, Any]]:
    """Returns three sizes for a CPU, named by parameters without embeddings; each trains on 8 tokens per parameter."""
    return {
        name: {
            "model.d_model": d_model,
            "model.n_layers": n_layers,
            "model.n_heads": d_model // 32,
            "model.d_mlp": 4 * d_model,
            "train.steps": steps,
            "train.warmup_steps": steps // 10,
        }
        for name, d_model, n_layers, steps in (("0.1M", 64, 2, 190), ("0.2M", 96, 2, 430), ("0.4M", 128, 2, 750))
    }


def ladder_contenders() -> dict[str, dict[str, Any]]:
    """Returns the transformer and respsann with the initial weights of `modern`, then with their own."""
    bases = _by_base("transformer", "respsann")
    return _with_zero_output(bases) | bases


_INTERLEAVED = {"waveresnet_interleave": {"model.base": "waveresnet", "model.wave.interleave": True}}


def _by_base(*bases: str) -> dict[str, dict[str, Any]]:
    return {base: {"model.base": base} for base in bases}


def _with_zero_output(contenders: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns contenders, named NAME_zero, whose blocks start as the identity."""
    return {f"{name}_zero": {**settings, "model.init": "zero_output"} for name, settings in contenders.items()}


def ablations() -> dict[str, dict[str, Any]]:
    """Returns respsann, variants of it with one feature removed or added, and the transformer.

    respsann is waveresnet without a wave block.
    """
    base: dict[str, Any] = {"model.base": "respsann"}
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


def modern_muon(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Returns an experiment with Muon as the NanoGPT speed-run uses it (Jordan, 2024); the caller sets train.lr.

    Nesterov momentum of 0.95 for matrices, and AdamW with ten times their rate for the embedding and an untied head.
    The factors are the largest and best ones tried (3 and 10 at train.lr 2e-2 and 4e-2; 1 and 3 at up to 2e-2), so
    larger ones may be better. At 2e-2, a factor of 3 for norms or biases was worse than 1. Measured with one seed on
    held-out lines of WikiText-2, with a transformer of d_model 64 and 3 layers and 250 updates of 2,048 tokens, on a
    CPU: a loss of 4.45, against 4.69 with equal rates, and 5.12 with AdamW at the best of three equal rates.

    Args:
      config: of a model with an output matrix of its own.
    """
    config.train.update(optimizer="muon", muon_momentum=0.95)
    config.train.lr_scales.update(embedding=10.0, head=10.0)
    return config


def sine_ablations() -> dict[str, dict[str, Any]]:
    """Returns respsann and variants that change one property of its activation or block."""
    base: dict[str, Any] = {"model.base": "respsann"}
    changes: Mapping[str, Mapping[str, Any]] = {
        "gelu": {"model.mlp_activation": "gelu"},
        "relu2": {"model.mlp_activation": "relu2"},
        "snake": {"model.mlp_activation": "snake"},
        "scaled_gelu": {"model.mlp_activation": "scaled_gelu"},
        "frequency_1": {"model.sine.freq_init": 1.0},
        "no_spread": {"model.sine.freq_init_std": 0.0},
        "undamped": {"model.sine.decay_mode": "none"},
        "damping_0.01": {"model.sine.damp_init": 0.01},
        "frozen_sine": {"model.sine.trainable": False},
        "frequency_rate_10": {"train.lr_scales.sine_frequency": 10.0},
        "layer_norm": {"model.norm": "layernorm"},
        "no_alpha": {"model.residual_alpha": False},
    }
    other_bases: dict[str, dict[str, Any]] = {
        "wave_interleave": {"model.base": "waveresnet", "model.wave.interleave": True},
        "wave_replace": {"model.base": "waveresnet", "model.wave.replace": True},
        "gate": {"model.base": "sgrpsann"},
    }
    return {"respsann": base, **{name: {**base, **change} for name, change in changes.items()}, **other_bases}


def fair_contenders() -> dict[str, dict[str, Any]]:
    """Returns the decoder bases with their own initial weights and with those of `modern`, and `modern` with Muon."""
    muon = {"train.optimizer": "muon", "train.lr_scales.embedding": 10.0, "train.lr_scales.head": 10.0}
    bases = _by_base("transformer", "respsann", "sgrpsann") | _INTERLEAVED
    return bases | {
        "modern": {"model.base": "modern"},
        "modern_muon": {"model.base": "modern", **muon},
        **_with_zero_output(bases),
    }


# --- the gravity screening ------------------------------------------------------------------------------


def w3_25m(contender: str) -> config_dict.ConfigDict:
    """Returns one run of the Newton Gravity Transformer's screening as an experiment.

    Args:
      contender: a name in `w3_25m_contenders`.
    """
    return contender_config(w3_25m_sweep(), w3_25m_contenders()[contender])


def w3_25m_sweep() -> config_dict.ConfigDict:
    """Returns what the runs of the screening share: 25 M parameters, 15,000 updates on WikiText-103."""
    config = default_config("ngt")
    config.seed = 42
    config.model.update(d_model=512, n_layers=8, n_heads=8, n_positions=512, dropout=0.1, init="reference")
    config.data.update(sources=(_WIKITEXT_103,), valid_sources=(f"{_WIKITEXT_103}@validation",))
    config.data.update(max_length=512, document_mask=False)
    config.data.tokenizer.update(kind="bpe", vocab_size=8192)
    config.train.update(steps=15_000, batch_tokens=16 * 512 * 2, grad_accum=2, lr=3e-4, warmup_steps=2000)
    config.train.update(betas=(0.9, 0.999), weight_decay_on="all", end_lr_ratio=0.0)
    config.eval.every = 500
    return config


def w3_25m_contenders() -> dict[str, dict[str, Any]]:
    """Returns the Newton Gravity Transformer as the original trains it, its ablations, and its baseline."""
    ngt: dict[str, Any] = {
        "model.base": "ngt",
        "model.rsqrt": True,
        # The original adds 0.05 to the loss of one of its two micro-batches, which is half of it per update.
        "model.repulsion.weight": 0.025,
        "model.repulsion.interval": 4,
    }
    changes: Mapping[str, Mapping[str, Any]] = {
        "no_radius": {"model.cutoff": "none"},
        "soft_cutoff": {"model.cutoff": "soft"},
        "mass_in_value": {"model.mass": "value"},
        "no_repulsion": {"model.repulsion.weight": 0.0, "model.repulsion.interval": 1},
        "repulsion_interval_8": {"model.repulsion.interval": 8},
    }
    ablated = {name: {**ngt, **change} for name, change in changes.items()}
    return {"ngt": ngt, **ablated, "vanilla": {"model.base": "vanilla"}}


def gravity_contenders() -> dict[str, dict[str, Any]]:
    """Returns the Newton Gravity Transformer with one change each, its opponents, and some with zero output weights."""
    ngt: dict[str, Any] = {"model.base": "ngt"}
    zero = _with_zero_output(_by_base("ngt", "vanilla", "transformer"))
    return {
        "vanilla": {"model.base": "vanilla"},
        "transformer": {"model.base": "transformer"},
        "ngt": ngt,
        "mass_in_value": ngt | {"model.mass": "value"},
        "attractive": ngt | {"model.variant": "attractive"},
        "no_radius": ngt | {"model.cutoff": "none"},
        "no_repulsion": ngt | {"model.repulsion.weight": 0.0},
        **zero,
        # With a tied head, as vanilla and ngt have.
        "transformer_zero_tied": zero["transformer_zero"] | {"model.tied_embeddings": True},
    }


# --- Sudoku ---------------------------------------------------------------------------------------------


def sudoku(
    *,
    steps: int = 70_000,
    warmup_steps: int = 2000,
    lr: float = 1.5e-3,
    puzzles: int = 4096,
    sam_rho: float = 0.0,
    activation: str = "relu",
) -> config_dict.ConfigDict:
    """Returns the iterative Sudoku transformer as the study trained it: 800,393 parameters, hardest puzzles first.

    Generated puzzles under random symmetries replace the study's 2.7 million puzzles of sudoku-extreme; to use its
    files, set data.files, data.valid_files and data.augment. The backward pass recomputes each block to save memory: a
    step with 4,096 puzzles in bf16 takes 19.0 GiB on an H100 and moves 1,106 GB; with remat "iteration" 10.6 GiB and
    1,135 GB (compiled, not run).

    Args:
      steps: number of updates.
      warmup_steps: updates of the warm-up, included in `steps`.
      lr: the peak learning rate; it ends at 1 % of that.
      puzzles: puzzles per batch.
      sam_rho: radius of sharpness-aware minimisation; 0.05 in those runs of the study that use it.
      activation: activation of the MLPs.
    """
    config = default_config("sudoku")
    config.seed = 42
    config.model.mlp_activation = activation
    config.train.update(steps=steps, warmup_steps=warmup_steps, lr=lr, batch_tokens=81 * puzzles, end_lr_ratio=0.01)
    config.train.update(weight_decay_on="all", grad_clip=0.0, sam_rho=sam_rho, remat="block", log_every=100)
    config.eval.every = 5000
    config.checkpoint.every = 1000
    return config


def sudoku_quickstart() -> config_dict.ConfigDict:
    """Returns a small iterative transformer that learns easy puzzles in minutes on a CPU."""
    config = default_config("sudoku")
    config.model.update(d_model=64, n_layers=2, n_heads=4, d_mlp=128, iterations=4, dropout=0.0)
    # With up to 45 of the empty cells filled in, puzzles are easy enough to learn the rules quickly.
    config.data.update(counts=(10_000, 0, 0, 0, 0), extra_clues=45, curriculum="mixed", valid_fraction=0.04)
    config.train.update(steps=4000, batch_tokens=81 * 32, lr=3e-3, warmup_steps=50, end_lr_ratio=0.01)
    config.train.update(precision="fp32", scan_layers=False, log_every=100)
    config.eval.every = 500
    return config


def sudoku_study_small() -> config_dict.ConfigDict:
    """Returns what the runs of the Sudoku study at a size for a CPU share: the quickstart with puzzles of all ratings.

    Curricula need all ratings. An average of the weights is evaluated beside them; it does not change the training.
    There are 974 validation puzzles. Generating all takes about five minutes of processor time, once.
    """
    config = sudoku_quickstart()
    config.data.update(counts=(6000, 2000, 1500, 160, 48), valid_fraction=0.1)
    config.train.ema_decay = 0.999
    return config


def sudoku_contenders(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns contenders of base sudoku from the settings, by dotted name, in which each differs from the reference."""
    return {name: {"model.base": "sudoku", **settings} for name, settings in changes.items()}
