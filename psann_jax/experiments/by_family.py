"""What depends on a config's model family: its data, its figures and its metrics."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from psann_jax.config import Config, DecoderConfig, NGTConfig, PuzzlesConfig


def on_puzzles(config: Config) -> bool:
    """Returns whether a run trains on Sudoku puzzles, not on text."""
    return isinstance(config.data, PuzzlesConfig)


def train_sources(config: Config) -> Sequence[str]:
    """Returns what a run trains on."""
    if isinstance(config.data, PuzzlesConfig):
        return config.data.files or ("generated puzzles",)
    return tuple(config.data.sources)


def valid_hashes(config: Config) -> dict[str, str]:
    """Returns the SHA-256 of those validation sources that are single files, as written by `make_eval`."""
    data = config.data
    sources = data.valid_files if isinstance(data, PuzzlesConfig) else data.valid_sources
    paths = [Path(source) for source in sources if Path(source).is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def has_sine(config: Config) -> bool:
    """Returns whether a network has sine activations, whose parameters can be plotted."""
    model = config.model
    resolved = model.resolve() if isinstance(model, DecoderConfig) else model
    return getattr(resolved, "mlp_activation", None) == "sine"


def has_coordinates(config: Config) -> bool:
    """Returns whether a network has coordinates, as gravity models do."""
    return isinstance(config.model, NGTConfig)
