"""What the `model` sections of all families have in common."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from psann_jax.config.checks import at_least, fraction, require
from psann_jax.config.data import DataSection


@dataclass(frozen=True)
class ModelConfig:
    """A stack of equal blocks with attention. A family's `model` section is a subclass.

    Attributes:
      HAS_COORDINATES: whether the network has an `inspect` method that returns coordinates, weights and masses, which
        the coordinates page shows.
    """

    HAS_COORDINATES: ClassVar[bool] = False

    base: str  # the model family
    d_model: int = 512  # features per token
    n_layers: int = 8  # blocks
    n_heads: int = 8  # attention heads; must divide d_model
    d_mlp: int = 2048  # hidden features of an MLP
    dropout: float = 0.0  # fraction of activations that training sets to 0
    kernels: Literal["auto", "plain"] = "auto"  # on a GPU or TPU; plain: only code that the compiler makes

    @property
    def uses_sine(self) -> bool:
        """Whether the network has trainable sine activations."""
        return getattr(self, "mlp_activation", None) == "sine"

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used; `prefix` is the dotted name of the section."""
        at_least(1, self, prefix, "d_model", "n_layers", "n_heads", "d_mlp")
        fraction(self, prefix, "dropout")
        require(
            self.d_model % self.n_heads == 0,
            f"{prefix}.d_model",
            f"is {self.d_model}, must be divisible by {prefix}.n_heads={self.n_heads}",
        )

    def check_data(self, data: DataSection) -> None:
        """Raises ConfigError if the network cannot read windows of these data."""

    def resolve(self) -> Self:
        """A copy with every None that stands for a value of the base replaced by that value."""
        return self

    def with_sizes(self, vocab_size: int | None, max_length: int) -> Self:
        """The section with all sizes that follow from the data.

        Args:
          vocab_size: tokens in the vocabulary; None leaves it unchanged.
          max_length: tokens in a window.
        """
        return self


@dataclass(frozen=True)
class TextModelConfig(ModelConfig):
    """A language model."""

    vocab_size: int = 0  # 0: the tokenizer's

    def check(self, prefix: str) -> None:
        """See `ModelConfig`."""
        super().check(prefix)
        at_least(0, self, prefix, "vocab_size")

    def with_sizes(self, vocab_size: int | None, max_length: int) -> Self:
        """See `ModelConfig`."""
        return self if vocab_size is None else dataclasses.replace(self, vocab_size=vocab_size)
