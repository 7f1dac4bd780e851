"""The `model` and `data` sections of the base sudoku."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from psann_jax.config.checks import at_least, refuse_inactive, require, sine_if_used
from psann_jax.config.decoder import SineConfig
from psann_jax.config.model import ModelConfig

# Buckets of puzzle ratings, named by their range; the last one is open.
BUCKETS = ("0", "1-2", "3-10", "11-50", "51+")
# Approximate fractions of these buckets in the test set of sudoku-extreme, by its own ratings. Estimated from published
# results for the buckets and for the whole set.
NATURAL_FRACTIONS = (0.147, 0.08, 0.211, 0.462, 0.1)


@dataclass(frozen=True)
class SudokuConfig(ModelConfig):
    """An iterative transformer that fills a grid: the same blocks are applied repeatedly to their own prediction."""

    base: str = "sudoku"
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_mlp: int = 512
    iterations: int = 16  # in training; evaluation may use more
    dropout: float = 0.1
    positional_encoding: Literal["additive", "rope2d"] = "additive"  # row + column + box, or rotary by row and column
    mlp_activation: Literal["relu", "gelu", "relu2", "sine"] = "relu"  # relu2: the square of relu
    sine: SineConfig = field(default_factory=SineConfig)

    def check(self, prefix: str) -> None:
        """See `ModelConfig`."""
        super().check(prefix)
        at_least(1, self, prefix, "iterations")
        head = self.d_model // self.n_heads
        require(
            self.positional_encoding != "rope2d" or head % 4 == 0,
            f"{prefix}.positional_encoding",
            f"rope2d needs a head size that is a multiple of 4, but d_model / n_heads is {head}",
        )
        sine_if_used(self, prefix)


@dataclass(frozen=True)
class PuzzlesConfig:
    """Where puzzles come from, and the order of difficulties in training."""

    files: tuple[str, ...] = ()  # CSV with question, answer and rating; (): generate puzzles
    valid_files: tuple[str, ...] = ()  # fixed validation puzzles; (): split from the others, by grid
    valid_fraction: float = 0.02  # of the grids, when valid_files is empty
    ratings: Literal["file", "guesses"] = "file"  # guesses: replace the ratings of the files by this project's own
    counts: tuple[int, int, int, int, int] = (60_000, 20_000, 10_000, 1_000, 50)  # puzzles to generate for each bucket
    extra_clues: int = 0  # maximum of additional clues in generated puzzles of rating 0
    seed: int = 1337  # of the generation and the split
    augment: bool = True  # apply a random symmetry each time a puzzle is used
    curriculum: Literal["reverse", "regular", "mixed"] = "reverse"  # hardest first, easiest first, all at once
    phases: tuple[float, ...] = (0.2, 0.2, 0.2, 0.4)  # fractions of the training steps
    cache_dir: str = ""  # of prepared puzzles; "": the user's cache directory

    @property
    def max_length(self) -> int:
        """Cells of a puzzle, which `train.batch_tokens` counts."""
        return 81

    @property
    def train_names(self) -> tuple[str, ...]:
        """See `DataSection`."""
        return self.files or ("generated puzzles",)

    @property
    def valid_names(self) -> tuple[str, ...]:
        """See `DataSection`."""
        return self.valid_files

    def summary(self) -> str:
        """See `DataSection`."""
        return f"puzzles from {', '.join(self.files)}" if self.files else "generated puzzles"

    def hold_out(self, fraction: float) -> Self:
        """See `DataSection`."""
        return replace(self, valid_files=(), valid_fraction=fraction)

    def check(self, prefix: str) -> None:
        """See `DataSection`."""
        at_least(0, self, prefix, "extra_clues", "seed")
        require(all(n >= 0 for n in self.counts), f"{prefix}.counts", f"is {self.counts}, must not be negative")
        require(
            bool(self.files) or any(self.counts), f"{prefix}.counts", "is 0 for every bucket, and there are no files"
        )
        require(
            bool(self.valid_files) or 0 < self.valid_fraction < 1,
            f"{prefix}.valid_fraction",
            f"is {self.valid_fraction}, must be between 0 and 1",
        )
        require(
            len(self.phases) == 4 and all(p >= 0 for p in self.phases) and abs(sum(self.phases) - 1) < 1e-6,
            f"{prefix}.phases",
            f"is {self.phases}, must be four fractions that add up to 1",
        )
        if self.files:
            refuse_inactive(self, prefix, f"with {prefix}.files", "counts", "extra_clues")
        else:
            refuse_inactive(self, prefix, f"without {prefix}.files", "ratings")
        if self.valid_files:
            refuse_inactive(self, prefix, f"with {prefix}.valid_files", "valid_fraction")
        if self.curriculum == "mixed":
            refuse_inactive(self, prefix, "with curriculum mixed", "phases")
