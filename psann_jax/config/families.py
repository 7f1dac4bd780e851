"""Model families: one record for each base, with everything the project needs to know about it.

To add a family inside the package, write its config class, its network and a record here. A package of your own adds
one through the entry point group ``psann_jax.families``; CONTRIBUTING.md walks through both.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from psann_jax.config.checks import ConfigError
from psann_jax.config.data import DataConfig, DataSection
from psann_jax.config.decoder import DecoderConfig
from psann_jax.config.gravity import NGTConfig, VanillaConfig
from psann_jax.config.model import ModelConfig
from psann_jax.config.names import nearest
from psann_jax.config.sudoku import PuzzlesConfig, SudokuConfig

ENTRY_POINTS = "psann_jax.families"


@dataclass(frozen=True)
class Family:
    """What the project needs to know about one base.

    Network, task, FLOPs and random data are objects, or "module:name" strings that are imported on first use, so that
    a config can be checked before JAX is loaded.

    Attributes:
      base: the value of `model.base`.
      model: dataclass of the `model` section.
      data: dataclass of the `data` section.
      network: subclass of `psann_jax.models.layered.Layered`; its class attribute REMATS lists the values of
        `train.remat` that it supports.
      task: class with the protocol `psann_jax.train.loop.Task`, a class method `load(config, progress=True)` and a
        constructor `task(config, data)`.
      flops: (network, window length) -> model FLOPs of one gradient per token, see `psann_jax.models.flops`.
      random_data: (config) -> data for `task` with random content, for measurements.
    """

    base: str
    model: type[ModelConfig]
    data: type[DataSection]
    network: Any
    task: Any
    flops: str | Callable[[Any, int], float]
    random_data: Any

    def get(self, name: str) -> Any:
        """The object in one of the fields network, task, flops and random_data."""
        value = getattr(self, name)
        return _resolve(value) if isinstance(value, str) else value


@functools.cache
def _resolve(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Adds a family.

    Raises:
      ValueError: another family has the same base.
    """
    if _FAMILIES.setdefault(family.base, family) != family:
        raise ValueError(f"base {family.base!r} is registered already")


def families() -> dict[str, Family]:
    """All families by base, those of installed packages included."""
    _load_entry_points()
    return dict(sorted(_FAMILIES.items()))


def family(base: str) -> Family:
    """The family of a base.

    Raises:
      ConfigError: unknown base; the message lists the valid ones.
    """
    if base not in _FAMILIES:
        known = families()
        if base not in known:
            suggestion = nearest(str(base), known)
            raise ConfigError(f"model.base: unknown base {base!r}{suggestion}; choose from {', '.join(known)}")
    return _FAMILIES[base]


@functools.cache
def _load_entry_points() -> None:
    for entry_point in entry_points(group=ENTRY_POINTS):
        register(entry_point.load())


def _text_family(base: str, model: type[ModelConfig], network: str, flops: str) -> Family:
    return Family(
        base=base,
        model=model,
        data=DataConfig,
        network=network,
        task="psann_jax.tasks.lm:LanguageModel",
        flops=f"psann_jax.models.flops:{flops}",
        random_data="psann_jax.data.random_text:RandomText",
    )


for _base in ("modern", "respsann", "sgrpsann", "transformer", "waveresnet"):
    register(_text_family(_base, DecoderConfig, "psann_jax.models.decoder:Decoder", "decoder_flops"))
register(_text_family("ngt", NGTConfig, "psann_jax.models.ngt:NGT", "gravity_flops"))
register(_text_family("vanilla", VanillaConfig, "psann_jax.models.vanilla:Vanilla", "decoder_flops"))
register(
    Family(
        base="sudoku",
        model=SudokuConfig,
        data=PuzzlesConfig,
        network="psann_jax.models.sudoku:Sudoku",
        task="psann_jax.tasks.sudoku:SudokuTask",
        flops="psann_jax.models.flops:sudoku_flops",
        random_data="psann_jax.data.sudoku.random_puzzles:RandomPuzzles",
    )
)
