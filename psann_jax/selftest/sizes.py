"""How big the checks are, on a CPU and on an accelerator, and the experiments of these sizes."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from psann_jax.config import (
    BASES,
    DATA_SECTIONS,
    CheckpointConfig,
    Config,
    DataConfig,
    TrainConfig,
    WaveConfig,
    require,
)
from psann_jax.config.io import model_section

_BASES = tuple(sorted(set(BASES) - set(DATA_SECTIONS)))  # of language models
_SCALES = [2**i for i in range(13)]
_BATCH_TOKENS = (65_536, 131_072, 262_144)


@dataclass(frozen=True)
class Shape:
    """A model and its window."""

    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    vocab_size: int
    max_length: int

    def model(self, base: str) -> Any:
        """The `model` section. Without its wave blocks, waveresnet would be respsann by another name."""
        sizes = asdict(self)
        del sizes["max_length"]
        extra = {"wave": WaveConfig(interleave=True)} if base == "waveresnet" else {}
        return model_section(base)(base=base, **sizes, **extra)


@dataclass(frozen=True)
class Sizes:
    """What the checks run on.

    Attributes:
      small: the model of the checks of values, from GPU-01 to GPU-08 without 03 and 04.
      small_tokens: in one of its batches.
      steps: updates that two trainings are compared over.
      speed: the model of GPU-03.
      speed_tokens: the batch_tokens that it is measured with.
      speed_steps: that are timed, after two that are not.
      memory: the model of GPU-04.
      memory_tokens: in one of its batches.
      precision: of GPU-03 and GPU-04.
      bases: that are checked.
      parallel_bases: that are trained on several devices; on a CPU one with every kind of layer but the spectral gate,
        as compiling takes most of the time there.
    """

    small: Shape = Shape(64, 2, 8, 256, 64, 64)
    small_tokens: int = 1024
    steps: int = 20
    speed: Shape = Shape(256, 4, 4, 1024, 32_000, 1024)
    speed_tokens: tuple[int, ...] = _BATCH_TOKENS
    speed_steps: int = 20
    memory: Shape = Shape(512, 8, 8, 2048, 32_000, 1024)
    memory_tokens: int = 16_384
    precision: str = "bf16"
    bases: tuple[str, ...] = _BASES
    parallel_bases: tuple[str, ...] = _BASES


def sizes_for(platform: str, n_devices: int, scale: int | None = None) -> Sizes:
    """The sizes for a device.

    Args:
      platform: as `jax.default_backend()` has it.
      n_devices: that a batch of GPU-03 and GPU-04 is divided over.
      scale: divides the batch_tokens of GPU-03; None: 1, on a CPU 64.

    Raises:
      ConfigError: the scale cannot be used.
    """
    on_cpu = platform == "cpu"
    sizes = Sizes()
    if on_cpu:
        sizes = replace(
            sizes,
            speed=Shape(128, 2, 4, 512, 8192, 256),
            speed_steps=5,
            memory=Shape(128, 4, 4, 512, 2048, 256),
            memory_tokens=4096,
            precision="fp32",
            parallel_bases=("waveresnet",),
        )
    scale = (64 if on_cpu else 1) if scale is None else scale
    check_scale(scale)
    tokens = tuple(n // scale for n in _BATCH_TOKENS)
    # Every device needs a window of the smallest batch.
    length = min(sizes.speed.max_length, max(tokens[0] // n_devices, 2))
    return replace(sizes, speed=replace(sizes.speed, max_length=length), speed_tokens=tokens)


def check_scale(scale: int) -> None:
    """Raises ConfigError if the batch_tokens of GPU-03 cannot be divided by it."""
    require(scale in _SCALES, "--scale", f"is {scale}, must be a power of two from 1 to {_SCALES[-1]}")


def experiment(shape: Shape, base: str, batch_tokens: int, *, dropout: float = 0.0, **train: Any) -> Config:
    """A checked config; `train` are fields of TrainConfig."""
    config = Config(
        model=replace(shape.model(base), dropout=dropout),
        data=DataConfig(max_length=shape.max_length),
        train=TrainConfig(**{"batch_tokens": batch_tokens, "warmup_steps": 2, **train}),
        checkpoint=CheckpointConfig(every=10**6),
    )
    config.check()
    return config


def small_experiment(sizes: Sizes, base: str, *, dropout: float = 0.0, **train: Any) -> Config:
    """The experiment of the checks of values: float32, and a learning rate at which its loss falls in 20 updates."""
    train = {"precision": "fp32", "steps": sizes.steps, "lr": 1e-2, **train}
    return experiment(sizes.small, base, sizes.small_tokens, dropout=dropout, **train)
