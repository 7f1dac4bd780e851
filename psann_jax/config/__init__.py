"""The settings of an experiment: a frozen dataclass for each section, its checks, and how settings are read."""

from psann_jax.config.checks import ConfigError, require
from psann_jax.config.data import SPECIAL_TOKENS, DataConfig, DataSection, TokenizerConfig
from psann_jax.config.decoder import (
    PRESETS,
    SINE_PARAMETERS,
    DecoderConfig,
    SineConfig,
    SpectralConfig,
    WaveConfig,
)
from psann_jax.config.gravity import NGTConfig, RepulsionConfig, VanillaConfig
from psann_jax.config.model import ModelConfig, TextModelConfig
from psann_jax.config.schema import (
    CheckpointConfig,
    Config,
    EvalConfig,
    LrScales,
    MeshConfig,
    TrainConfig,
    text_data,
    text_model,
)
from psann_jax.config.sudoku import PuzzlesConfig, SudokuConfig

__all__ = [
    "PRESETS",
    "SINE_PARAMETERS",
    "SPECIAL_TOKENS",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataSection",
    "DecoderConfig",
    "EvalConfig",
    "LrScales",
    "MeshConfig",
    "ModelConfig",
    "NGTConfig",
    "PuzzlesConfig",
    "RepulsionConfig",
    "SineConfig",
    "SpectralConfig",
    "SudokuConfig",
    "TextModelConfig",
    "TokenizerConfig",
    "TrainConfig",
    "VanillaConfig",
    "WaveConfig",
    "require",
    "text_data",
    "text_model",
]
