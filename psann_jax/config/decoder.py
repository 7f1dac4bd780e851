"""The `model` section of the bases modern, transformer, respsann, sgrpsann and waveresnet."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from psann_jax.config.checks import at_least, fraction, refuse_inactive, require, sine_if_used
from psann_jax.config.data import DataSection
from psann_jax.config.model import TextModelConfig

SINE_PARAMETERS = ("amplitude", "frequency", "decay")
_DRAWN = ("init", "init_std", "range", "bounds")
# Activations with a factor per feature, for which the settings of the sine's frequency apply.
_SCALED = ("snake", "scaled_gelu")
_NOT_FREQUENCY = ("decay_mode", "learnable", *(f"{name}_{end}" for name in ("amp", "damp") for end in _DRAWN))


@dataclass(frozen=True)
class SineConfig:
    """Initial values and bounds of the trainable sine ``A * exp(-d * g(z)) * sin(f * z)``.

    The defaults are the best settings of the base sweeps of 2025-12 (frequency 2.25 +- 0.25 per feature,
    damping 0.001). The defaults of the original code are ``freq_init=1, freq_init_std=0, damp_init=0.01``.
    """

    amp_init: float = 1.0  # amplitude A
    amp_init_std: float = 0.0  # > 0: each feature is drawn from N(amp_init, std^2)
    amp_range: tuple[float, ...] = ()  # (low, high): one uniform draw for each layer
    amp_bounds: tuple[float, ...] = ()  # (low, high): clamps the effective value
    freq_init: float = 2.25  # frequency f
    freq_init_std: float = 0.25  # as amp_init_std
    freq_range: tuple[float, ...] = ()  # as amp_range
    freq_bounds: tuple[float, ...] = ()  # as amp_bounds
    damp_init: float = 0.001  # damping d
    damp_init_std: float = 0.0  # as amp_init_std
    damp_range: tuple[float, ...] = ()  # as amp_range
    damp_bounds: tuple[float, ...] = ()  # as amp_bounds
    decay_mode: Literal["abs", "relu", "none"] = "abs"  # g(z) = |z|, max(z, 0) or 0
    trainable: bool = True  # False: freeze all three parameters
    learnable: tuple[str, ...] = SINE_PARAMETERS  # the parameters to train

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used."""
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
        for reason, names in self.inactive():
            refuse_inactive(self, prefix, reason, *names)

    def inactive(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields settings that have no effect together with the others: why, and their names."""
        if self.decay_mode == "none":
            yield "with decay_mode none", tuple(f"damp_{end}" for end in _DRAWN)
        if not self.trainable:
            yield "with trainable False", ("learnable",)


def saved_sine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns saved settings of `SineConfig`, with those that have no effect at their defaults, as a check requires."""
    given = SineConfig(**{name: settings[name] for name in ("decay_mode", "trainable") if name in settings})
    inactive = {name for _, names in given.inactive() for name in names}
    return {name: getattr(SineConfig, name) if name in inactive else value for name, value in settings.items()}


@dataclass(frozen=True)
class WaveConfig:
    """The causal depthwise convolution block of the `waveresnet` base."""

    interleave: bool = False  # a wave block after every MLP
    replace: bool = False  # a wave branch instead of the MLP: x + alpha * wave(norm(x))
    kernel: int = 3  # taps
    dilation_growth: int = 1  # the dilation of layer i is dilation_growth ** i
    dropout: float = 0.0  # in the wave blocks

    def check(self, prefix: str, n_layers: int) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        at_least(1, self, prefix, "kernel", "dilation_growth")
        fraction(self, prefix, "dropout")
        reach = (self.kernel - 1) * self.dilation_growth ** (n_layers - 1)
        require(
            reach < 2**20,
            f"{prefix}.dilation_growth",
            f"makes the last layer reach back {reach} tokens, but at most {2**20} are supported",
        )
        require(
            not (self.interleave and self.replace),
            f"{prefix}.replace",
            "cannot be used together with interleave: replace puts a wave branch in the place of the MLP, "
            "interleave adds one after the MLP",
        )
        if not (self.interleave or self.replace):
            refuse_inactive(self, prefix, f"without {prefix}.interleave or {prefix}.replace")


@dataclass(frozen=True)
class SpectralConfig:
    """The causal spectral gate of the `sgrpsann` base: a learned filter of `k_fft` taps per feature."""

    k_fft: int = 64  # taps: how many tokens back the filter reaches
    # fourier_features counts each frequency once, rfft the inner ones twice
    gate_type: Literal["rfft", "fourier_features"] = "rfft"
    gate_groups: Literal["depthwise", "full"] = "depthwise"  # how features are mixed after the filter
    gate_init: float = 0.0  # before the sigmoid; 0 passes half of every frequency
    gate_strength: float = 1.0  # factor of the filtered features

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        at_least(2, self, prefix, "k_fft")


@dataclass(frozen=True)
class DecoderConfig(TextModelConfig):
    """A decoder-only language model: the bases modern, transformer, respsann, sgrpsann and waveresnet.

    `None` selects the preset of the base (`PRESETS`).
    """

    base: str = "waveresnet"
    positional_encoding: Literal["rope", "alibi", "sinusoidal"] = "rope"  # how the network knows positions
    n_kv_heads: int = 0  # heads of keys and values; must divide n_heads, whose groups share them; 0: n_heads
    # RMSNorm of the queries and keys of each head, before the rotation of rope; None: as the base (False; modern: True)
    qk_norm: bool | None = None
    # tokens of its document that a token attends to, itself included, below data.max_length; 0: all before it
    sliding_window: int = 0
    # implementation; auto: the fastest for the device
    attention: Literal["auto", "xla", "cudnn", "triton", "splash", "plain"] = "auto"
    # also of wave blocks, except swiglu; None: as the base (sine; transformer: gelu; modern: relu2)
    mlp_activation: Literal["sine", "gelu", "relu", "relu2", "silu", "swiglu", "snake", "scaled_gelu"] | None = None
    norm: Literal["rmsnorm", "layernorm"] | None = None  # None: as the base (rmsnorm; transformer: layernorm)
    bias: bool | None = None  # biases in MLPs and wave blocks; None: as the base (True; modern: False)
    # initial weights; zero_output: no branch adds anything at first; None: as the base (xavier; modern: zero_output)
    init: Literal["xavier", "zero_output"] | None = None
    tied_embeddings: bool = False  # the head is the transposed embedding
    logit_softcap: float = 0.0  # c: bounds the logits by c * tanh(logits / c); 0: no bound
    # a learned scalar on the MLP branch; None: as the base (True; transformer: False)
    residual_alpha: bool | None = None
    sine: SineConfig = field(default_factory=SineConfig)
    wave: WaveConfig = field(default_factory=WaveConfig)
    spectral: SpectralConfig = field(default_factory=SpectralConfig)

    @property
    def uses_sine(self) -> bool:
        """See `ModelConfig`."""
        return self.resolve().mlp_activation == "sine"

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    def resolve(self) -> Self:
        """See `ModelConfig`."""
        own = {k: v for k in PRESETS[self.base] if (v := getattr(self, k)) is not None}
        return dataclasses.replace(self, **{**PRESETS[self.base], **own})

    def check(self, prefix: str) -> None:
        """See `ModelConfig`."""
        super().check(prefix)
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
        at_least(0, self, prefix, "n_kv_heads", "sliding_window", "logit_softcap")
        require(
            self.n_heads % self.kv_heads == 0,
            f"{prefix}.n_kv_heads",
            f"is {self.n_kv_heads}, must divide {prefix}.n_heads={self.n_heads}",
        )
        self._check_activation(prefix)
        self.wave.check(f"{prefix}.wave", self.n_layers)
        self.spectral.check(f"{prefix}.spectral")
        if self.base != "waveresnet":
            refuse_inactive(self.wave, f"{prefix}.wave", f"with base {self.base}, only with waveresnet")
        if self.base != "sgrpsann":
            refuse_inactive(self.spectral, f"{prefix}.spectral", f"with base {self.base}, only with sgrpsann")

    def check_data(self, data: DataSection) -> None:
        """See `ModelConfig`."""
        if self.sliding_window >= data.max_length:
            refuse_inactive(self, "model", f"with data.max_length={data.max_length}", "sliding_window")

    def _check_activation(self, prefix: str) -> None:
        activation = self.resolve().mlp_activation
        if activation in _SCALED:
            self.sine.check(f"{prefix}.sine")
            reason = f"with mlp_activation {activation}, which has a frequency only"
            refuse_inactive(self.sine, f"{prefix}.sine", reason, *_NOT_FREQUENCY)
        else:
            sine_if_used(self, prefix)
        require(
            activation != "swiglu" or not (self.wave.interleave or self.wave.replace),
            f"{prefix}.mlp_activation",
            "swiglu needs a second matrix, which a wave block does not have; use silu",
        )


_COMMON = {"qk_norm": False, "bias": True, "init": "xavier"}
_PSANN = {"mlp_activation": "sine", "norm": "rmsnorm", "residual_alpha": True, **_COMMON}

PRESETS: dict[str, dict[str, Any]] = {
    # what recent language models of this size agree on
    "modern": {
        "mlp_activation": "relu2",
        "norm": "rmsnorm",
        "residual_alpha": False,
        "qk_norm": True,
        "bias": False,
        "init": "zero_output",
    },
    "respsann": _PSANN,
    "sgrpsann": _PSANN,  # respsann with a spectral gate on the MLP branch
    "transformer": {"mlp_activation": "gelu", "norm": "layernorm", "residual_alpha": False, **_COMMON},
    "waveresnet": _PSANN,  # respsann with wave blocks, if they are enabled
}
