"""The `model` section of the decoder's bases: transformer, respsann, sgrpsann and waveresnet."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from psann_jax.config.checks import at_least, refuse_inactive, require, share, transformer_sizes

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
        at_least(1, self, prefix, "kernel", "dilation_growth")
        share(self, prefix, "dropout")
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
            refuse_inactive(self, prefix, f"without {prefix}.interleave or {prefix}.replace")


@dataclass(frozen=True)
class SpectralConfig:
    """The causal spectral gate of the `sgrpsann` base: a learned filter of `k_fft` taps per feature."""

    k_fft: int = 64
    gate_type: Literal["rfft", "fourier_features"] = "rfft"
    gate_groups: Literal["depthwise", "full"] = "depthwise"  # the mixing after the filter
    gate_init: float = 0.0  # raw gate; sigmoid(0) lets half of every frequency through
    gate_strength: float = 1.0

    def check(self, prefix: str) -> None:
        at_least(2, self, prefix, "k_fft")


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
        transformer_sizes(self, prefix)
        at_least(0, self, prefix, "vocab_size")
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
            refuse_inactive(self.sine, f"{prefix}.sine", "without the sine activation")
        if self.base != "waveresnet":
            refuse_inactive(self.wave, f"{prefix}.wave", f"with base {self.base}, only with waveresnet")
        if self.base != "sgrpsann":
            refuse_inactive(self.spectral, f"{prefix}.spectral", f"with base {self.base}, only with sgrpsann")


_PSANN = {"mlp_activation": "sine", "norm": "rmsnorm", "residual_alpha": True}

PRESETS: dict[str, dict[str, Any]] = {
    "respsann": _PSANN,
    "sgrpsann": _PSANN,  # respsann with a spectral gate on the MLP branch
    "transformer": {"mlp_activation": "gelu", "norm": "layernorm", "residual_alpha": False},
    "waveresnet": _PSANN,  # respsann with wave blocks, when these are switched on
}
