"""The `model` section of the bases ngt (Newton Gravity Transformer) and vanilla (what it is compared with)."""

from dataclasses import dataclass, field
from typing import Literal

from psann_jax.config.checks import at_least, refuse_inactive, require, sine_if_used, transformer_sizes
from psann_jax.config.decoder import SineConfig


@dataclass(frozen=True)
class RepulsionConfig:
    """A loss that keeps the coordinates of a window apart: mean over pairs of m_i m_j / distance^alpha."""

    weight: float = 0.05  # 0: off. With n micro-batches the original's 0.05 acts like 0.05 / n does here
    interval: int = 1  # updates between those that have it
    alpha: float = 2.0
    tokens: int = 64  # drawn from each window, the same places in all

    def check(self, prefix: str) -> None:
        at_least(0, self, prefix, "weight")
        at_least(1, self, prefix, "interval")
        at_least(2, self, prefix, "tokens")
        require(self.alpha > 0, f"{prefix}.alpha", f"is {self.alpha}, must be positive")
        if not self.weight:
            refuse_inactive(self, prefix, f"with {prefix}.weight=0", "interval", "alpha", "tokens")


@dataclass(frozen=True)
class VanillaConfig:
    """A pre-norm transformer with learned positions, biases everywhere and a head tied to the embedding."""

    base: str = "vanilla"
    vocab_size: int = 0  # 0: the tokenizer's
    d_model: int = 512
    n_layers: int = 8
    n_heads: int = 8
    d_mlp: int = 1536
    n_positions: int = 0  # rows of the table of positions; 0: data.max_length
    dropout: float = 0.0
    attention: Literal["auto", "xla", "cudnn", "plain"] = "auto"
    mlp_activation: Literal["sine", "gelu", "relu"] = "gelu"
    init: Literal["small", "reference"] = "small"  # N(0, 0.02), or the original's: N(0, 1) embeddings, loss over 300
    sine: SineConfig = field(default_factory=SineConfig)

    def check(self, prefix: str) -> None:
        transformer_sizes(self, prefix)
        at_least(0, self, prefix, "vocab_size", "n_positions")
        sine_if_used(self, prefix)


@dataclass(frozen=True)
class NGTConfig(VanillaConfig):
    """The Newton Gravity Transformer: attention by the distance of coordinates that evolve with the layers.

    With the defaults its score is the original's, -gamma * m_i * m_j / distance^2, which is highest for the farthest
    and lightest tokens; `variant="attractive"` turns the sign.
    """

    base: str = "ngt"
    d_mlp: int = 2048
    attention: Literal["auto", "tiled", "plain"] = "auto"  # type: ignore[assignment]
    d_coord: int = 64  # coordinates of a token
    d_head_coord: int = 16  # of which every head makes so many
    variant: Literal["reference", "attractive"] = "reference"
    mass: Literal["score", "value"] = "score"  # what the masses multiply
    cutoff: Literal["hard", "soft", "decay", "none"] = "hard"  # see psann_jax.ops.gravity_scores.GravityForm
    radius_init: float = 4.0  # softplus of it is the radius; training changes it with the soft and decay cutoffs only
    eps: float | None = None  # added to squared distances; None: 1e-6, with the attractive variant 0.1
    rsqrt: bool = False  # 1 / d as rsqrt(d)^2: the same up to rounding
    coordinate_evolution: bool = True  # False: all layers have the coordinates of the position
    repulsion: RepulsionConfig = field(default_factory=RepulsionConfig)

    def check(self, prefix: str) -> None:
        super().check(prefix)
        at_least(1, self, prefix, "d_coord", "d_head_coord")
        require(self.eps is None or self.eps > 0, f"{prefix}.eps", f"is {self.eps}, must be positive")
        self.repulsion.check(f"{prefix}.repulsion")
        if self.cutoff == "none":
            refuse_inactive(self, prefix, "with cutoff none", "radius_init")
