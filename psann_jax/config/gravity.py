"""The `model` sections of the bases ngt (Newton Gravity Transformer) and vanilla (its baseline)."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from psann_jax.config.checks import at_least, refuse_inactive, require, sine_if_used
from psann_jax.config.data import DataSection
from psann_jax.config.decoder import SineConfig
from psann_jax.config.model import TextModelConfig


@dataclass(frozen=True)
class RepulsionConfig:
    """A loss that keeps the coordinates of a window apart: the mean over pairs of m_i m_j / distance^alpha."""

    weight: float = 0.05  # 0: off. The original's 0.05 with n micro-batches corresponds to 0.05 / n here
    interval: int = 1  # applied in every interval-th update
    alpha: float = 2.0  # power of the distance, at most 10
    tokens: int = 64  # sampled from each window, at the same positions in all windows

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        at_least(0, self, prefix, "weight")
        at_least(1, self, prefix, "interval")
        at_least(2, self, prefix, "tokens")
        require(
            0 < self.alpha <= 10,
            f"{prefix}.alpha",
            f"is {self.alpha}, must be positive and at most 10: float32 cannot hold larger gradients of close tokens",
        )
        if not self.weight:
            refuse_inactive(self, prefix, f"with {prefix}.weight=0", "interval", "alpha", "tokens")


@dataclass(frozen=True)
class VanillaConfig(TextModelConfig):
    """A pre-norm transformer with learned positions, biases in all layers and a head tied to the embedding."""

    base: str = "vanilla"
    d_mlp: int = 1536
    n_positions: int = 0  # rows of the position table; 0: data.max_length
    # implementation; auto: the fastest for the device
    attention: Literal["auto", "xla", "cudnn", "triton", "splash", "plain"] = "auto"
    # of the MLPs; gelu_tanh: its approximation in GPT-2
    mlp_activation: Literal["sine", "gelu", "gelu_tanh", "relu"] = "gelu"
    # initial weights except of coordinates; small: N(0, 0.02^2); reference: as in the original, N(0, 1);
    # zero_output: as in the decoders, no branch adds anything at first
    init: Literal["small", "reference", "zero_output"] = "small"
    sine: SineConfig = field(default_factory=SineConfig)

    def check(self, prefix: str) -> None:
        """See `ModelConfig`."""
        super().check(prefix)
        at_least(0, self, prefix, "n_positions")
        sine_if_used(self, prefix)

    def check_data(self, data: DataSection) -> None:
        """See `ModelConfig`."""
        fits = not self.n_positions or data.max_length <= self.n_positions
        require(
            fits,
            "data.max_length",
            f"is {data.max_length}, but the model has {self.n_positions} positions; raise model.n_positions",
        )

    def with_sizes(self, vocab_size: int | None, max_length: int) -> Self:
        """See `ModelConfig`."""
        sized = super().with_sizes(vocab_size, max_length)
        return dataclasses.replace(sized, n_positions=self.n_positions or max_length)


@dataclass(frozen=True)
class NGTConfig(VanillaConfig):
    """The Newton Gravity Transformer: attention by the distance of coordinates that each layer updates.

    The default score is the original's, -gamma * m_i * m_j / distance^2. It is highest for the most distant and the
    lightest tokens; `variant="attractive"` reverses the sign.
    """

    HAS_COORDINATES: ClassVar[bool] = True

    base: str = "ngt"
    d_mlp: int = 2048
    attention: Literal["auto", "pallas", "tiled", "plain"] = "auto"  # type: ignore[assignment]
    d_coord: int = 64  # coordinates per token
    d_head_coord: int = 16  # coordinates per head
    # sign of the scores: as the original, or nearer tokens score higher
    variant: Literal["reference", "attractive"] = "reference"
    mass: Literal["score", "value"] = "score"  # which of the two the masses multiply
    cutoff: Literal["hard", "soft", "decay", "none"] = "hard"  # how scores end at the radius, see the page on gravity
    radius_init: float = 4.0  # the radius is its softplus; trained with the soft and decay cutoffs only
    eps: float | None = None  # added to squared distances; None: 0.1 with the attractive variant, else 1e-6
    rsqrt: bool = False  # computes 1 / d as rsqrt(d)^2, which is equal up to rounding
    coordinate_evolution: bool = True  # False: all layers use the initial coordinates
    repulsion: RepulsionConfig = field(default_factory=RepulsionConfig)

    def check(self, prefix: str) -> None:
        """See `ModelConfig`."""
        super().check(prefix)
        at_least(1, self, prefix, "d_coord", "d_head_coord")
        require(self.eps is None or self.eps > 0, f"{prefix}.eps", f"is {self.eps}, must be positive")
        self.repulsion.check(f"{prefix}.repulsion")
        if self.cutoff == "none":
            refuse_inactive(self, prefix, "with cutoff none", "radius_init")
