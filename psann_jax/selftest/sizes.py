"""Sizes of models and batches on CPUs and accelerators, and configs of these sizes."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from psann_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    TrainConfig,
    WaveConfig,
    require,
)
from psann_jax.config.families import families, family

_BASES = tuple(base for base, found in families().items() if found.data is DataConfig)
_SCALES = [2**i for i in range(13)]
_BATCH_TOKENS = (65_536, 131_072, 262_144)
_MODEL: dict[str, dict[str, Any]] = {
    # With output matrices of zero, most other parameters have no gradient in the first update, but GPU-01 requires one,
    # and an update is skipped in fp16, but GPU-02 requires none.
    "modern": {"init": "xavier"},
    "waveresnet": {"wave": WaveConfig(interleave=True)},  # without wave blocks it would equal respsann
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its window."""

    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    vocab_size: int
    max_length: int

    def model(self, base: str) -> Any:
        """Returns the `model` section."""
        sizes = asdict(self)
        del sizes["max_length"]
        return family(base).model(base=base, **sizes, **_MODEL.get(base, {}))


@dataclass(frozen=True)
class Sizes:
    """Sizes of all checks.

    Attributes:
      small: model of all checks but GPU-03 and GPU-04.
      small_tokens: tokens per batch of `small`.
      steps: number of updates in runs that are compared.
      speed: model of GPU-03.
      speed_tokens: tokens per batch of `speed`, one measurement each.
      speed_steps: timed updates per measurement.
      memory: model of GPU-04.
      memory_tokens: tokens per batch of `memory`.
      precision: precision of GPU-03 and GPU-04.
      bases: bases to check.
      parallel_bases: bases to train on several devices. On a CPU, where compilation takes most of the time, only one,
        which has every kind of layer but the spectral gate.
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
    """Returns the sizes for a machine.

    Args:
      platform: the value of `jax.default_backend()`.
      n_devices: number of devices that a batch of GPU-03 is sharded over.
      scale: divisor of the batch_tokens of GPU-03; None: 64 on a CPU, 1 elsewhere.

    Raises:
      ConfigError: The scale is not a power of two in range.
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
    # The smallest batch must have at least one window per device.
    length = min(sizes.speed.max_length, max(tokens[0] // n_devices, 2))
    return replace(sizes, speed=replace(sizes.speed, max_length=length), speed_tokens=tokens)


def check_scale(scale: int) -> None:
    """Raises ConfigError unless the scale is a power of two that divides the batch_tokens of GPU-03."""
    require(scale in _SCALES, "--scale", f"is {scale}, must be a power of two from 1 to {_SCALES[-1]}")


def experiment(shape: Shape, base: str, batch_tokens: int, *, dropout: float = 0.0, **train: Any) -> Config:
    """Returns a checked config; `train` sets fields of TrainConfig."""
    config = Config(
        model=replace(shape.model(base), dropout=dropout),
        data=DataConfig(max_length=shape.max_length),
        train=TrainConfig(**{"batch_tokens": batch_tokens, "warmup_steps": 2, **train}),
        checkpoint=CheckpointConfig(every=10**6),
    )
    config.check()
    return config


def small_experiment(sizes: Sizes, base: str, *, dropout: float = 0.0, **train: Any) -> Config:
    """Returns a config of the small model: float32, with a learning rate at which the loss falls within 20 updates."""
    train = {"precision": "fp32", "steps": sizes.steps, "lr": 1e-2, **train}
    return experiment(sizes.small, base, sizes.small_tokens, dropout=dropout, **train)
