"""The settings of an experiment: a frozen dataclass for every section, with its checks.

Every setting acts or raises: one that could have no effect beside the others is refused. Config files and
JSON become these dataclasses in `psann_jax.config_io`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from psann_jax.errors import UserError


class ConfigError(UserError):
    """A config key or value that cannot be used; the message begins with the field's dotted name."""


def require(ok: bool, name: str, message: str) -> None:
    """Raises ConfigError ``name: message`` unless `ok`."""
    if not ok:
        raise ConfigError(f"{name}: {message}")


def _at_least(least: int, section: Any, prefix: str, *names: str) -> None:
    """Raises if a named number of `section` is below `least`."""
    for name in names:
        value = getattr(section, name)
        require(value >= least, f"{prefix}.{name}", f"is {value}, must be at least {least}")


def _share(section: Any, prefix: str, *names: str) -> None:
    """Raises if a named number of `section` is outside [0, 1)."""
    for name in names:
        value = getattr(section, name)
        require(0 <= value < 1, f"{prefix}.{name}", f"is {value}, must be at least 0 and below 1")


def _refuse_inactive(section: Any, prefix: str, reason: str, *names: str) -> None:
    """Raises if a named field (default: any) of `section` differs from its default, as it would do nothing."""
    default = type(section)()
    for name in names or [f.name for f in dataclasses.fields(section)]:
        value = getattr(default, name)
        require(getattr(section, name) == value, f"{prefix}.{name}", f"has no effect {reason}; leave it at {value!r}")


# --- model ----------------------------------------------------------------------------------------------

SINE_PARAMETERS = ("amplitude", "frequency", "decay")


@dataclass(frozen=True)
class SineConfig:
    """Initial values and limits of the trainable sine ``A * exp(-d * g(z)) * sin(f * z)``.

    The defaults are the best settings of the base sweeps of 2025-12 (frequency 2.25 +- 0.25 per feature,
    damping 0.001); the original code's are ``freq_init=1, freq_init_std=0, damp_init=0.01``.
    """

    amp_init: float = 1.0
    amp_init_std: float = 0.0  # > 0: every feature draws from N(amp_init, std)
    amp_range: tuple[float, ...] = ()  # (low, high): every layer draws one value, uniformly
    amp_bounds: tuple[float, ...] = ()  # (low, high): clamps the value in use
    freq_init: float = 2.25
    freq_init_std: float = 0.25
    freq_range: tuple[float, ...] = ()
    freq_bounds: tuple[float, ...] = ()
    damp_init: float = 0.001
    damp_init_std: float = 0.0
    damp_range: tuple[float, ...] = ()
    damp_bounds: tuple[float, ...] = ()
    decay_mode: Literal["abs", "relu", "none"] = "abs"  # g(z) = |z|, max(z, 0) or 0
    trainable: bool = True  # False freezes all three parameters
    learnable: tuple[str, ...] = SINE_PARAMETERS  # the parameters that training may change

    def check(self, prefix: str) -> None:
        for name in ("amp", "freq", "damp"):
            init, std = getattr(self, f"{name}_init"), getattr(self, f"{name}_init_std")
            require(init > 0, f"{prefix}.{name}_init", f"is {init}, must be positive")
            require(std >= 0, f"{prefix}.{name}_init_std", f"is {std}, must not be negative")
            for kind in ("range", "bounds"):
                key, pair = f"{prefix}.{name}_{kind}", getattr(self, f"{name}_{kind}")
                require(len(pair) in (0, 2), key, f"is {pair}, must be () or (low, high)")
                require(not pair or 0 <= pair[0] <= pair[1], key, f"is {pair}, needs 0 <= low <= high")
            require(
                not (std and getattr(self, f"{name}_range")),
                f"{prefix}.{name}_range",
                f"cannot be used together with {name}_init_std={std}; set {name}_init_std=0",
            )
        for name in self.learnable:
            require(
                name in SINE_PARAMETERS,
                f"{prefix}.learnable",
                f"unknown parameter {name!r}, choose from {', '.join(SINE_PARAMETERS)}",
            )


@dataclass(frozen=True)
class WaveConfig:
    """The causal depthwise convolution block of the `waveresnet` base."""

    interleave: bool = False  # a wave block after every MLP
    replace: bool = False  # the wave branch in place of the MLP: x + alpha * wave(norm(x))
    kernel: int = 3  # taps
    dilation_growth: int = 1  # layer i is dilated by dilation_growth ** i
    dropout: float = 0.0

    def check(self, prefix: str, n_layers: int) -> None:
        _at_least(1, self, prefix, "kernel", "dilation_growth")
        _share(self, prefix, "dropout")
        reach = (self.kernel - 1) * self.dilation_growth ** (n_layers - 1)
        require(
            reach < 2**20,
            f"{prefix}.dilation_growth",
            f"makes the last layer reach {reach} tokens back; at most {2**20} are supported",
        )
        require(
            not (self.interleave and self.replace),
            f"{prefix}.replace",
            "cannot be used together with interleave: it puts the wave branch in place of the MLP, "
            "interleave adds one after it",
        )
        if not (self.interleave or self.replace):
            _refuse_inactive(self, prefix, f"without {prefix}.interleave or {prefix}.replace")


@dataclass(frozen=True)
class SpectralConfig:
    """The causal spectral gate of the `sgrpsann` base: a learned filter of `k_fft` taps per feature."""

    k_fft: int = 64
    gate_type: Literal["rfft", "fourier_features"] = "rfft"
    gate_groups: Literal["depthwise", "full"] = "depthwise"  # the mixing after the filter
    gate_init: float = 0.0  # raw gate; sigmoid(0) lets half of every frequency through
    gate_strength: float = 1.0

    def check(self, prefix: str) -> None:
        _at_least(2, self, prefix, "k_fft")


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only language model: the bases transformer, respsann, sgrpsann and waveresnet.

    `None` stands for what the base prescribes (`PRESETS`).
    """

    base: str = "waveresnet"
    vocab_size: int = 0  # 0: the tokenizer's
    d_model: int = 512
    n_layers: int = 8
    n_heads: int = 8
    d_mlp: int = 2048
    dropout: float = 0.0
    positional_encoding: Literal["rope", "alibi", "sinusoidal"] = "rope"
    attention: Literal["auto", "xla", "cudnn", "plain"] = "auto"
    mlp_activation: Literal["sine", "gelu", "relu"] | None = None
    norm: Literal["rmsnorm", "layernorm"] | None = None
    residual_alpha: bool | None = None  # a learned factor on the MLP branch
    sine: SineConfig = field(default_factory=SineConfig)
    wave: WaveConfig = field(default_factory=WaveConfig)
    spectral: SpectralConfig = field(default_factory=SpectralConfig)

    def resolve(self) -> "DecoderConfig":
        """The same with every None replaced by what the base prescribes."""
        own = {k: v for k in PRESETS[self.base] if (v := getattr(self, k)) is not None}
        return dataclasses.replace(self, **{**PRESETS[self.base], **own})

    def check(self, prefix: str) -> None:
        _at_least(1, self, prefix, "d_model", "n_layers", "n_heads", "d_mlp")
        _at_least(0, self, prefix, "vocab_size")
        _share(self, prefix, "dropout")
        require(
            self.d_model % self.n_heads == 0,
            f"{prefix}.d_model",
            f"is {self.d_model}, must be divisible by {prefix}.n_heads={self.n_heads}",
        )
        head = self.d_model // self.n_heads
        require(
            self.positional_encoding != "rope" or head % 2 == 0,
            f"{prefix}.positional_encoding",
            f"rope needs an even head size, but d_model / n_heads is {head}",
        )
        require(
            self.positional_encoding != "sinusoidal" or self.d_model % 2 == 0,
            f"{prefix}.positional_encoding",
            f"sinusoidal needs an even d_model, but it is {self.d_model}",
        )
        self.sine.check(f"{prefix}.sine")
        self.wave.check(f"{prefix}.wave", self.n_layers)
        self.spectral.check(f"{prefix}.spectral")
        if self.resolve().mlp_activation != "sine":
            _refuse_inactive(self.sine, f"{prefix}.sine", "without the sine activation")
        if self.base != "waveresnet":
            _refuse_inactive(self.wave, f"{prefix}.wave", f"with base {self.base}, only with waveresnet")
        if self.base != "sgrpsann":
            _refuse_inactive(self.spectral, f"{prefix}.spectral", f"with base {self.base}, only with sgrpsann")


_PSANN = {"mlp_activation": "sine", "norm": "rmsnorm", "residual_alpha": True}

PRESETS: dict[str, dict[str, Any]] = {
    "respsann": _PSANN,
    "sgrpsann": _PSANN,  # respsann with a spectral gate on the MLP branch
    "transformer": {"mlp_activation": "gelu", "norm": "layernorm", "residual_alpha": False},
    "waveresnet": _PSANN,  # respsann with wave blocks, when these are switched on
}

# Base name -> the dataclass of its `model` section. The networks are in psann_jax/models/registry.py.
BASES: dict[str, type] = {
    "respsann": DecoderConfig,
    "sgrpsann": DecoderConfig,
    "transformer": DecoderConfig,
    "waveresnet": DecoderConfig,
}


# --- data -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    kind: Literal["auto", "bpe", "unigram", "wordpiece", "sentencepiece", "bytes"] = "auto"
    path: str = ""  # a prebuilt tokenizer.json or sentencepiece .model; then nothing is trained
    vocab_size: int = 32000  # of a trained tokenizer, special tokens included
    min_frequency: int = 2
    sample_bytes: int = 50_000_000  # text that a tokenizer is trained on; 0: all
    pad_token: str = "<pad>"
    bos_token: str = "<bos>"
    eos_token: str = "<eos>"
    unk_token: str = "<unk>"

    def check(self, prefix: str) -> None:
        if self.kind == "bytes" or self.path:
            why = f"with {prefix}.path" if self.path else "with the bytes tokenizer"
            _refuse_inactive(self, prefix, why, "vocab_size", "min_frequency", "sample_bytes")
        _at_least(8, self, prefix, "vocab_size")
        _at_least(1, self, prefix, "min_frequency")
        _at_least(0, self, prefix, "sample_bytes")
        tokens = [getattr(self, f"{t}_token") for t in SPECIAL_TOKENS]
        require(
            all(tokens) and len(set(tokens)) == len(tokens),
            f"{prefix}.pad_token",
            f"the special tokens {tokens} must be four different, non-empty strings",
        )


SPECIAL_TOKENS = ("pad", "bos", "eos", "unk")


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it is cut into windows."""

    sources: tuple[str, ...] = ("builtin:python",)  # see psann_jax/data/sources.py for the forms
    weights: tuple[float, ...] = ()  # share of each source in training; (): by size
    valid_sources: tuple[str, ...] = ()  # fixed validation text; (): a split of the sources
    valid_fraction: float = 0.01  # of the documents, when valid_sources is empty
    split_seed: int = 1337
    text_field: str = "text"  # of .jsonl, .parquet, tfds: and hf: records
    document: Literal["line", "file"] = "line"  # what one document of a .txt file is
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    max_length: int = 1024  # tokens in a window
    pack: bool = True  # False: one document a row, padded
    document_mask: bool = True  # False: a token sees the earlier documents of its window
    cache_dir: str = ""  # token shards; "": the user's cache directory
    threads: int = 2  # that read windows ahead of training

    def check(self, prefix: str) -> None:
        require(bool(self.sources), f"{prefix}.sources", "is empty, name at least one source")
        require(
            len(self.weights) in (0, len(self.sources)),
            f"{prefix}.weights",
            f"has {len(self.weights)} values for {len(self.sources)} sources",
        )
        require(all(w > 0 for w in self.weights), f"{prefix}.weights", f"is {self.weights}, must be positive")
        require(
            bool(self.valid_sources) or 0 < self.valid_fraction < 1,
            f"{prefix}.valid_fraction",
            f"is {self.valid_fraction}, must be between 0 and 1",
        )
        _at_least(2, self, prefix, "max_length")
        _at_least(1, self, prefix, "threads")
        require(
            self.pack or self.document_mask,
            f"{prefix}.document_mask",
            "cannot be off when data.pack is off: a row holds one document then",
        )
        self.tokenizer.check(f"{prefix}.tokenizer")


# --- training -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation: how long, how fast, in which precision."""

    steps: int = 1000
    batch_tokens: int = 32768  # of one update, over all devices and micro-batches
    grad_accum: int = 1  # micro-batches an update is summed from
    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    lr: float = 2e-4
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # after the warm-up
    warmup_steps: int = 100
    end_lr_ratio: float = 0.1  # the last update's share of lr
    decay_fraction: float = 0.2  # of the steps, at the end of the wsd schedule
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    weight_decay_on: Literal["matrices", "all"] = "matrices"  # all: also norms, biases, sine, alpha
    grad_clip: float = 1.0  # global norm; 0: off
    label_smoothing: float = 0.0
    z_loss: float = 0.0  # weight of the squared log-normaliser
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"  # of the computation; weights stay float32
    remat: Literal["none", "block", "dots", "full"] = "none"  # what the backward pass recomputes
    scan_layers: bool = True  # one compiled layer for all; False: unrolled
    max_bad_steps: int = 10  # non-finite updates in a row that end the run
    log_every: int = 10

    def check(self, prefix: str) -> None:
        _at_least(1, self, prefix, "steps", "batch_tokens", "grad_accum", "log_every", "max_bad_steps")
        _at_least(0, self, prefix, "warmup_steps", "weight_decay", "grad_clip", "z_loss")
        _share(self, prefix, "label_smoothing")
        for name in ("lr", "eps"):
            require(getattr(self, name) > 0, f"{prefix}.{name}", f"is {getattr(self, name)}, must be positive")
        for name in ("end_lr_ratio", "decay_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{prefix}.{name}", f"is {value}, must be between 0 and 1")
        require(all(0 <= b < 1 for b in self.betas), f"{prefix}.betas", f"is {self.betas}, must be in [0, 1)")
        if self.schedule != "wsd":
            _refuse_inactive(self, prefix, f"with schedule {self.schedule}", "decay_fraction")
        if self.schedule == "constant":
            _refuse_inactive(self, prefix, "with schedule constant", "end_lr_ratio")
        if self.optimizer == "adafactor":
            _refuse_inactive(self, prefix, "with optimizer adafactor", "betas", "eps")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on the fixed validation set; it always runs before the first and after the last step."""

    every: int = 0  # steps between evaluations; 0: only before and after
    max_tokens: int = 0  # a fixed prefix of the validation set; 0: all of it

    def check(self, prefix: str) -> None:
        _at_least(0, self, prefix, "every", "max_tokens")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the training state is saved. The last and the best (by validation loss) are always kept."""

    every: int = 500  # steps between checkpoints
    keep: int = 2  # latest ones that are kept
    keep_every: int = 0  # keeps the checkpoints at multiples of this for good; 0: none

    def check(self, prefix: str) -> None:
        _at_least(1, self, prefix, "every", "keep")
        _at_least(0, self, prefix, "keep_every")
        require(
            self.keep_every % self.every == 0,
            f"{prefix}.keep_every",
            f"is {self.keep_every}, must be a multiple of {prefix}.every={self.every}",
        )


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1, for all the remaining devices."""

    data: int = -1  # copies of the model, each with its share of the batch
    fsdp: int = 1  # shares of the parameters, each with its share of the batch
    tensor: int = 1  # shares of heads, MLP features and vocabulary

    def check(self, prefix: str) -> None:
        sizes = dataclasses.astuple(self)
        for f, size in zip(dataclasses.fields(self), sizes, strict=True):
            require(size >= 1 or size == -1, f"{prefix}.{f.name}", f"is {size}, must be positive, or -1 for the rest")
        require(sizes.count(-1) <= 1, prefix, f"only one axis can be -1, got {sizes}")


@dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = 1337  # of initial weights, data order and dropout
    model: Any = field(default_factory=DecoderConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @property
    def batch_size(self) -> int:
        """Windows in one update."""
        return self.train.batch_tokens // self.data.max_length

    def check(self) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        require(self.seed >= 0, "seed", f"is {self.seed}, must not be negative")
        for f in dataclasses.fields(self):
            if f.name != "seed":
                getattr(self, f.name).check(f.name)
        tokens, length, accum = self.train.batch_tokens, self.data.max_length, self.train.grad_accum
        require(
            tokens >= length,
            "train.batch_tokens",
            f"is {tokens}, smaller than one window of data.max_length={length} tokens",
        )
        require(
            tokens % (length * accum) == 0,
            "train.batch_tokens",
            f"is {tokens}, must be a multiple of data.max_length * train.grad_accum = {length * accum}",
        )
