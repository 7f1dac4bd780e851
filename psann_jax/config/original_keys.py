"""Settings of the three PyTorch originals, and what each of them is called here.

The originals are psannlm (the keys of its YAML files), the Newton Gravity Transformer (the flags of its training
scripts) and the Sudoku study (the constants of its scripts). A setting that a file leaves out has the original's
default where that differs from the one here.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from psann_jax.config.checks import ConfigError, require
from psann_jax.config.decoder import PRESETS
from psann_jax.config.families import family
from psann_jax.config.io import default_config, flatten

Settings = dict[str, Any]
# A setting of the same meaning and value, or the settings for a value; the latter raises ConfigError for wrong values.
Translation = str | Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Unused:
    """A key without a counterpart.

    Attributes:
      why: why it has no effect here, or what to use instead.
    """

    why: str


@dataclass(frozen=True)
class Original:
    """One of the originals.

    Attributes:
      name: of the program, for messages.
      keys: its keys, with what they mean here. Names in capitals are no settings; `complete` computes settings of them.
      complete: (translated settings) -> all settings of the file by dotted name, and remarks for the user.
    """

    name: str
    keys: Mapping[str, Translation | Unused]
    complete: Callable[[Settings], tuple[Settings, list[str]]]


def _cases(cases: Mapping[Any, Mapping[str, Any]]) -> Callable[[Any], Mapping[str, Any]]:
    """A translation that lists the values of a key, each with its settings."""

    def translate(value: Any) -> Mapping[str, Any]:
        known = {(type(case), case): settings for case, settings in cases.items()}
        found = known.get((type(value), value)) if isinstance(value, Hashable) else None
        if found is None:
            raise ConfigError(f"is {value!r}, must be one of {', '.join(map(_shown, cases))}")
        return found

    return translate


def _shown(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, str(value))


def _is(name: str, values: Mapping[Any, Any]) -> Callable[[Any], Mapping[str, Any]]:
    """A translation of the values of one setting."""
    return _cases({value: {name: translated} for value, translated in values.items()})


def _whole(value: Any, key: str) -> int:
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(ok, key, f"is {value!r}, must be a whole number of at least 1")
    return int(value)


def _defaults(settings: Settings, defaults: Mapping[str, Any]) -> Settings:
    """Settings with defaults for those that are missing and that the base has."""
    base = settings["model.base"]
    require(isinstance(base, str), "base", f"is {base!r}, must be the name of a base")
    family(base)
    names = dict(flatten(default_config(base).to_dict()))
    return {**{name: value for name, value in defaults.items() if name in names}, **settings}


# --- psannlm --------------------------------------------------------------------------------------------


def _sources(value: Any) -> Mapping[str, Any]:
    """The files of a list of paths or of mappings with the key path."""
    listed = value if isinstance(value, list) else [value]
    paths = [each.get("path") if isinstance(each, Mapping) and set(each) == {"path"} else each for each in listed]
    if not listed or not all(isinstance(path, str) and path for path in paths):
        raise ConfigError(f"is {value!r}, must be a list of '- path: FILE'")
    return {"data.sources": paths}


def _distillation(value: Any) -> Mapping[str, Any]:
    if value != 0:
        raise ConfigError(f"is {value!r}, must be 0: models are not distilled here")
    return {}


def _length_psannlm(settings: Settings) -> list[str]:
    """Replaces epochs, steps per epoch and tokens by updates; returns remarks."""
    epochs, per_epoch = settings.pop("EPOCHS", None), settings.pop("STEPS_PER_EPOCH", None)
    if epochs is not None:
        _whole(epochs, "epochs")
    tokens = settings.pop("TOKENS", None)
    if tokens is not None and "train.steps" not in settings:
        batch = _whole(settings.get("train.batch_tokens", _PSANNLM_DEFAULTS["train.batch_tokens"]), "batch_tokens")
        settings["train.steps"] = max(_whole(tokens, "tokens_target") // batch, 1)
    if per_epoch is not None and "train.steps" not in settings:
        steps = _whole(per_epoch, "steps_per_epoch") * _whole(1 if epochs is None else epochs, "epochs")
        settings["train.steps"] = steps
    if epochs is None or "train.steps" in settings:
        return []
    steps = default_config().train.steps
    return [f"epochs={epochs} is not used: a run has train.steps updates, {steps} without --config.train.steps=N"]


def _complete_psannlm(settings: Settings) -> tuple[Settings, list[str]]:
    settings = {"model.base": "waveresnet", **settings}
    remarks = _length_psannlm(settings)
    if settings.get("data.tokenizer.path") and "data.tokenizer.vocab_size" in settings:
        settings["model.vocab_size"] = settings.pop("data.tokenizer.vocab_size")
    settings = _defaults(settings, _PSANNLM_DEFAULTS)
    activation = settings.get("model.mlp_activation") or PRESETS.get(settings["model.base"], {}).get("mlp_activation")
    if activation == "sine":
        return {**_PSANNLM_SINE, **settings}, remarks
    kept = {name: value for name, value in settings.items() if not name.startswith("model.sine.")}
    if kept != settings:
        remarks.append(f"sine_params is not used: mlp_activation is {activation}")
    return kept, remarks


# Defaults of psannlm that differ from those of this project.
_PSANNLM_DEFAULTS = {
    "train.batch_tokens": 32768,
    "train.warmup_steps": 2000,
    "train.end_lr_ratio": 0.0,
    "train.log_every": 50,
}
_PSANNLM_SINE = {"model.sine.freq_init": 1.0, "model.sine.freq_init_std": 0.0, "model.sine.damp_init": 0.01}

_PSANNLM_TOKENIZER = _is("data.tokenizer.kind", {"auto": "auto", "sentencepiece": "sentencepiece", "tokenizers": "bpe"})
_PSANNLM_MODEL: dict[str, Translation | Unused] = {
    **{name: f"model.{name}" for name in ("base", "d_model", "n_layers", "n_heads", "d_mlp", "dropout")},
    "positional_encoding": "model.positional_encoding",
    "pos_enc": "model.positional_encoding",
    "rope": _is("model.positional_encoding", {True: "rope", False: "sinusoidal"}),
    "mlp_activation": _is("model.mlp_activation", {"sine": "sine", "psann": "sine", "gelu": "gelu", "relu": "relu"}),
    "attn_impl": _is("model.attention", {"math": "plain", "sdpa": "auto", "auto": "auto"}),
    "vocab_size": "data.tokenizer.vocab_size",
    **{
        f"sine_params.{name}_{end}": f"model.sine.{name}_{end}"
        for name in ("amp", "freq", "damp")
        for end in ("init", "init_std", "range", "bounds")
    },
    **{f"sine_params.{name}": f"model.sine.{name}" for name in ("trainable", "learnable", "decay_mode")},
    "wave_interleave": "model.wave.interleave",
    "wave_replace": "model.wave.replace",
    "wave_kernel_size": "model.wave.kernel",
    "wave_dilation_growth": "model.wave.dilation_growth",
    "wave_dropout": "model.wave.dropout",
    **{n: f"model.spectral.{n}" for n in ("k_fft", "gate_type", "gate_groups", "gate_init", "gate_strength")},
}

_ALL_DEVICES = Unused("all devices train; --config.mesh.fsdp=N divides the parameters over N of them")
_WORKDIR = Unused("a run is kept in the directory --workdir=DIR")
_PYTORCH = Unused("it concerns PyTorch, not the model or its training")
_EVALUATED = Unused("the whole validation set is evaluated; --config.eval.max_tokens=N bounds it")

_PYTORCH_KEYS = (
    "torch_compile",
    "torch_compile_mode",
    "torch_compile_fullgraph",
    "torch_compile_dynamic",
    "fsdp_cpu_offload",
    "fsdp_use_orig_params",
    "fsdp_auto_wrap_policy",
    "fsdp_min_params",
    "dataloader_prefetch_factor",
    "dataloader_persistent_workers",
    "log_gpu_mem",
    "cuda_empty_cache_after_init",
    "cuda_empty_cache_interval_steps",
)

PSANNLM = Original(
    name="psannlm",
    complete=_complete_psannlm,
    keys={
        **{f"model.{name}": rule for name, rule in _PSANNLM_MODEL.items()},
        **_PSANNLM_MODEL,
        "data.sources": _sources,
        "data.tokenizer": _PSANNLM_TOKENIZER,
        "data.tokenizer_model_path": "data.tokenizer.path",
        "data.max_length": "data.max_length",
        "data.pack_sequences": "data.pack",
        "data.val_split": "data.valid_fraction",
        "data.seed": "data.split_seed",
        "tokenizer.backend": _PSANNLM_TOKENIZER,
        "tokenizer.vocab_size": "data.tokenizer.vocab_size",
        "tokenizer.model_path": "data.tokenizer.path",
        "tokenizer.min_frequency": "data.tokenizer.min_frequency",
        "tokenizer.save_dir": Unused("the workdir keeps the tokenizer; --config.data.tokenizer.path=FILE uses one"),
        "train.epochs": lambda value: {"EPOCHS": value},
        "train.steps_per_epoch": lambda value: {"STEPS_PER_EPOCH": value},
        "train.tokens_target": lambda value: {"TOKENS": value},
        "train.max_steps": "train.steps",
        **{
            f"train.{name}": f"train.{name}"
            for name in ("batch_tokens", "lr", "warmup_steps", "weight_decay", "grad_clip", "label_smoothing", "betas")
        },
        "train.eps": "train.eps",
        "train.optimizer": _is("train.optimizer", {"adamw": "adamw", "adafactor": "adafactor"}),
        "train.seed": "seed",
        "train.amp": _is(
            "train.precision", {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "none": "fp32", None: "fp32"}
        ),
        "train.grad_accum_steps": "train.grad_accum",
        "train.grad_checkpoint": _is("train.remat", {True: "block", False: "none"}),
        "train.log_interval_steps": "train.log_every",
        "train.save_interval_steps": "checkpoint.every",
        "train.eval_interval_steps": "eval.every",
        "train.eval_max_batches": _EVALUATED,
        "train.dataloader_num_workers": "data.num_workers",
        "train.checkpoint_dir": _WORKDIR,
        "train.ddp": _ALL_DEVICES,
        "train.fsdp": _ALL_DEVICES,
        "train.distill_alpha": _distillation,
        **{f"train.{name}": _PYTORCH for name in _PYTORCH_KEYS},
    },
)


# --- the Newton Gravity Transformer ----------------------------------------------------------------------


def _complete_ngt(settings: Settings) -> tuple[Settings, list[str]]:
    settings = {"model.base": "ngt", **settings}
    windows, length = settings.pop("BATCH", 16), settings.get("data.max_length", _NGT_DEFAULTS["data.max_length"])
    accum = _whole(settings.get("train.grad_accum", 2), "gradient_accumulation_steps")
    settings["train.batch_tokens"] = _whole(windows, "batch_size") * _whole(length, "block_size") * accum
    remarks = []
    if settings.get("model.repulsion.weight") == 0:
        if settings.pop("model.repulsion.interval", 1) != 1:
            remarks.append("repulsion_interval is not used: no_repulsion is true")
    elif settings["model.base"] == "ngt":
        # The original adds 0.05 times the repulsion to the loss of one micro-batch.
        settings.setdefault("model.repulsion.weight", 0.05 / accum)
    if settings.get("train.schedule") == "constant":
        if settings.get("train.warmup_steps"):
            remarks.append("warmup_steps is not used: the original warms up with use_cosine_schedule only")
        settings["train.warmup_steps"] = 0
    else:
        settings.setdefault("train.end_lr_ratio", 0.0)
    if "data.sources" not in settings:
        settings |= _WIKITEXT_103
    return _defaults(settings, _NGT_DEFAULTS), remarks


_HF = "hf:Salesforce/wikitext/wikitext-103-raw-v1"
_WIKITEXT_103 = {"data.sources": [_HF], "data.valid_sources": [f"{_HF}@validation"]}
_CACHED = Unused("data are kept in the user's cache directory, or in --config.data.cache_dir=DIR")

# The run w3_25m of the original, where it differs from the defaults of this project.
_NGT_DEFAULTS: dict[str, Any] = {
    "seed": 42,
    "model.dropout": 0.1,
    "model.init": "reference",
    "data.max_length": 512,
    "data.document_mask": False,
    "data.tokenizer.kind": "bpe",
    "data.tokenizer.vocab_size": 8192,
    "train.steps": 15_000,
    "train.grad_accum": 2,
    "train.lr": 3e-4,
    "train.warmup_steps": 2000,
    "train.betas": (0.9, 0.999),
    "train.weight_decay_on": "all",
    "eval.every": 500,
}

_NGT_KEYS: dict[str, Translation | Unused] = {
    "model_type": _is("model.base", {"ngt": "ngt", "vanilla": "vanilla"}),
    "hidden_dim": "model.d_model",
    "num_layers": "model.n_layers",
    "num_heads": "model.n_heads",
    "mlp_dim": "model.d_mlp",
    "coord_dim": "model.d_coord",
    "head_coord_dim": "model.d_head_coord",
    "max_seq_len": "model.n_positions",
    "dropout": "model.dropout",
    "mass_in_value": _is("model.mass", {True: "value", False: "score"}),
    "soft_cutoff": _cases({True: {"model.cutoff": "soft"}, False: {}}),
    "no_radius_cutoff": _cases({True: {"model.cutoff": "none"}, False: {}}),
    "no_repulsion": _cases({True: {"model.repulsion.weight": 0.0}, False: {}}),
    "repulsion_interval": "model.repulsion.interval",
    "use_rsqrt": "model.rsqrt",
    "dataset": _cases({"wikitext103": _WIKITEXT_103}),
    "block_size": "data.max_length",
    "tokenizer": _is("data.tokenizer.kind", {"bpe": "bpe"}),
    "vocab_size": "data.tokenizer.vocab_size",
    "bpe_vocab_size": "data.tokenizer.vocab_size",
    "tokenizer_path": Unused("the workdir keeps the tokenizer; --config.data.tokenizer.path=FILE uses one"),
    "data_path": _CACHED,
    "batch_size": lambda value: {"BATCH": value},
    "gradient_accumulation_steps": "train.grad_accum",
    "learning_rate": "train.lr",
    "grad_clip": "train.grad_clip",
    "use_cosine_schedule": _is("train.schedule", {True: "cosine", False: "constant"}),
    "warmup_steps": "train.warmup_steps",
    "max_steps": "train.steps",
    "use_amp": _is("train.precision", {True: "fp16", False: "fp32"}),
    "eval_interval": "eval.every",
    "eval_iters": _EVALUATED,
    "seed": "seed",
    "checkpoint_path": _WORKDIR,
    "run_name": _WORKDIR,
    "vis_interval": Unused("psann-jax coordinates draws the coordinates of a trained run"),
}

NGT = Original(
    name="Newton Gravity Transformer",
    complete=_complete_ngt,
    # Flags of a command line may keep their hyphens.
    keys={**_NGT_KEYS, **{name.replace("_", "-"): rule for name, rule in _NGT_KEYS.items()}},
)


# --- the Sudoku study -------------------------------------------------------------------------------------


def _complete_sudoku(settings: Settings) -> tuple[Settings, list[str]]:
    settings = {"model.base": "sudoku", **settings}
    settings["train.batch_tokens"] = 81 * _whole(settings.pop("BATCH", 4096), "batch_size")
    if settings.pop("SAM", False):
        settings.setdefault("train.sam_rho", 0.05)
    if settings.get("train.schedule") != "constant":
        settings.setdefault("train.end_lr_ratio", 0.01)
    return _defaults(settings, _SUDOKU_DEFAULTS), []


# The run exp_cosine_no_sam of the study, where it differs from the defaults of this project.
_SUDOKU_DEFAULTS: dict[str, Any] = {
    "seed": 42,
    "train.steps": 70_000,
    "train.warmup_steps": 2000,
    "train.lr": 1.5e-3,
    "train.weight_decay_on": "all",
    "train.grad_clip": 0.0,
    "train.remat": "block",
    "train.log_every": 100,
    "eval.every": 5000,
    "checkpoint.every": 1000,
}

SUDOKU = Original(
    name="Sudoku study",
    complete=_complete_sudoku,
    keys={
        "d_model": "model.d_model",
        "d_ff": "model.d_mlp",
        "n_layers": "model.n_layers",
        "n_heads": "model.n_heads",
        "n_iterations": "model.iterations",
        "dropout": "model.dropout",
        "activation": _is("model.mlp_activation", {name: name for name in ("relu", "gelu", "relu2")}),
        "pos_embedding": _is("model.positional_encoding", {"additive": "additive", "2d_rope": "rope2d"}),
        "curriculum": _is("data.curriculum", {name: name for name in ("reverse", "regular", "mixed")}),
        "batch_size": lambda value: {"BATCH": value},
        "BS": lambda value: {"BATCH": value},
        "lr": "train.lr",
        "LR": "train.lr",
        "weight_decay": "train.weight_decay",
        "WD": "train.weight_decay",
        "betas": "train.betas",
        "total_steps": "train.steps",
        "warmup_steps": "train.warmup_steps",
        "schedule": _is("train.schedule", {"cosine": "cosine", "constant": "constant"}),
        "sam": _cases({True: {"SAM": True}, False: {"train.sam_rho": 0.0}}),
        "sam_rho": "train.sam_rho",
        "ema_decay": "train.ema_decay",
        "eval_every": "eval.every",
        "seed": "seed",
    },
)

# Keys that many programs have. A file that has no other keys of an original is none of the original's.
_COMMON = (
    *("seed", "lr", "LR", "learning_rate", "weight_decay", "WD", "betas", "schedule", "grad_clip", "warmup_steps"),
    *("max_steps", "batch_size", "BS", "dropout", "d_model", "n_layers", "n_heads", "d_mlp", "vocab_size"),
    *("activation", "tokenizer", "dataset"),
)
GENERIC = {*_COMMON, *(name.replace("_", "-") for name in _COMMON)}

# Looked up in this order where several originals know the same number of a file's keys.
ORIGINALS = {original.name: original for original in (PSANNLM, NGT, SUDOKU)}
