"""The settings of an experiment: a frozen dataclass for each section, its checks, and how settings are read."""

from psann_jax.config.checks import ConfigError, require
from psann_jax.config.decoder import (
    PRESETS,
    SINE_PARAMETERS,
    DecoderConfig,
    SineConfig,
    SpectralConfig,
    WaveConfig,
)
from psann_jax.config.gravity import NGTConfig, RepulsionConfig, VanillaConfig
from psann_jax.config.schema import (
    BASES,
    DATA_SECTIONS,
    SPECIAL_TOKENS,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    MeshConfig,
    TokenizerConfig,
    TrainConfig,
)
from psann_jax.config.sudoku import PuzzlesConfig, SudokuConfig

__all__ = [
    "BASES",
    "DATA_SECTIONS",
    "PRESETS",
    "SINE_PARAMETERS",
    "SPECIAL_TOKENS",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DecoderConfig",
    "EvalConfig",
    "MeshConfig",
    "NGTConfig",
    "PuzzlesConfig",
    "RepulsionConfig",
    "SineConfig",
    "SpectralConfig",
    "SudokuConfig",
    "TokenizerConfig",
    "TrainConfig",
    "VanillaConfig",
    "WaveConfig",
    "require",
]
