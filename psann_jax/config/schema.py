"""The settings of an experiment: one frozen dataclass for each section, with its checks.

A setting that would have no effect in combination with the others is an error. `psann_jax.config.io` converts config
files and JSON to these dataclasses.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Literal

from psann_jax.config.checks import ConfigError, at_least, fraction, refuse_inactive, require, require_known
from psann_jax.config.data import DataConfig, DataSection
from psann_jax.config.decoder import DecoderConfig
from psann_jax.config.model import ModelConfig, TextModelConfig


@dataclass(frozen=True)
class LrScales:
    """Factors of the learning rate by kind of parameter; a kind that the model does not train is refused.

    An update changes a parameter by the rate of its kind, and so does weight decay.
    """

    matrix: float = 1.0  # weights of linear layers
    embedding: float = 1.0  # of tokens and positions, and a head tied to them
    head: float = 1.0  # the output matrix, if it is not tied to the embedding
    norm: float = 1.0  # scales and biases of norms
    bias: float = 1.0  # of linear layers
    alpha: float = 1.0  # factors of residual branches
    sine: float = 1.0  # all parameters of sine activations
    sine_amplitude: float = 1.0  # also times the factor sine
    sine_frequency: float = 1.0  # also times the factor sine
    sine_decay: float = 1.0  # damping; also times the factor sine
    conv: float = 1.0  # depthwise convolutions of wave blocks
    gate: float = 1.0  # spectral masks and their mix
    mixing: float = 1.0  # mixing matrices of the spectral gate
    gravity: float = 1.0  # of gravity scores, and biases of coordinates
    coordinate: float = 1.0  # matrices to and from coordinates
    table: float = 1.0  # of coordinates and masses

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        at_least(0, self, prefix, *(f.name for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation: length, learning rate, batch size and precision."""

    steps: int = 1000  # updates of the weights
    # weights to start from: the workdir of a run, or a file that psann-jax convert reads; "": drawn from seed
    init_from: str = ""
    init_checkpoint: str = "last"  # of the workdir in init_from: last, best by validation loss, or a step
    init_ema: bool = False  # start from the EMA weights of init_from
    # dotted names of model settings that may differ from those of init_from; parameters that it lacks start anew
    init_changes: tuple[str, ...] = ()
    batch_tokens: int = 32768  # per update, over all devices and micro-batches
    grad_accum: int = 1  # micro-batches per update
    # adafactor: less memory; muon: for matrices, adamw for the rest
    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    lr: float = 2e-4  # peak of the learning rate
    lr_scales: LrScales = field(default_factory=LrScales)
    freeze: tuple[str, ...] = ()  # kinds of parameters, as in lr_scales, that keep their values
    # of adapters of the matrices, which alone are trained; loading and converting merge them; 0: none
    lora_rank: int = 0
    lora_alpha: float = 16.0  # adapters are added times lora_alpha / lora_rank
    lr_base_width: int = 0  # d_model for which lr is meant: matrices and heads get lr * this / d_model; 0: off
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # after the warmup
    warmup_steps: int = 100  # in which the learning rate rises from 0; included in steps
    end_lr_ratio: float = 0.1  # lr of the last update / lr
    decay_fraction: float = 0.2  # of the steps in which the wsd schedule decays
    betas: tuple[float, float] = (0.9, 0.95)  # decay of the first and second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.01  # per update, times the learning rate
    muon_momentum: float = 0.95  # decay of Muon's momentum
    weight_decay_on: Literal["matrices", "all"] = "matrices"  # all: also norms, biases, sines, gates, alpha
    grad_clip: float = 1.0  # global norm; 0: off
    sam_rho: float = 0.0  # radius of sharpness-aware minimisation, which doubles the work; 0: off
    ema_decay: float = 0.0  # of an exponential moving average of the weights, evaluated too; 0: none
    label_smoothing: float = 0.0  # probability spread over all tokens in the training loss
    z_loss: float = 0.0  # weight of the squared log of the softmax denominator
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"  # of the computation; weights are float32
    # what the backward pass recomputes to save memory; which values a base supports: psann-jax bench memory
    remat: Literal["none", "block", "dots", "full", "iteration", "nested"] = "none"
    scan_layers: bool | None = None  # compile one layer and scan over all; False: unroll; None: by device
    max_bad_steps: int = 10  # consecutive non-finite updates that end the run
    log_every: int = 10  # steps between lines of metrics.jsonl
    loggers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()  # services that receive the metrics, too

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        at_least(1, self, prefix, "steps", "batch_tokens", "grad_accum", "log_every", "max_bad_steps")
        at_least(0, self, prefix, "warmup_steps", "weight_decay", "grad_clip", "z_loss", "sam_rho", "lr_base_width")
        fraction(self, prefix, "label_smoothing", "ema_decay", "muon_momentum")
        self.lr_scales.check(f"{prefix}.lr_scales")
        require(len({*self.loggers}) == len(self.loggers), f"{prefix}.loggers", f"is {self.loggers}, which repeats one")
        kinds = [f.name for f in dataclasses.fields(self.lr_scales)]
        for kind in self.freeze:
            require_known(kind, kinds, f"{prefix}.freeze", f"{kind!r} is no kind of parameter")
        self._check_start(prefix)
        at_least(0, self, prefix, "lora_rank")
        require(self.lora_alpha > 0, f"{prefix}.lora_alpha", f"is {self.lora_alpha}, must be positive")
        if self.lora_rank:
            reason = f"with {prefix}.lora_rank, which trains adapters only"
            refuse_inactive(self, prefix, reason, "freeze", "lr_base_width", "lr_scales")
            require(self.optimizer != "muon", f"{prefix}.optimizer", f"cannot be muon {reason}; use adamw")
        else:
            refuse_inactive(self, prefix, f"without {prefix}.lora_rank", "lora_alpha")
        for name in ("steps", "warmup_steps"):  # the type of steps in a program is int32
            require(getattr(self, name) < 2**31, f"{prefix}.{name}", f"is {getattr(self, name)}, must be below 2**31")
        for name in ("lr", "eps"):
            require(getattr(self, name) > 0, f"{prefix}.{name}", f"is {getattr(self, name)}, must be positive")
        for name in ("end_lr_ratio", "decay_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{prefix}.{name}", f"is {value}, must be between 0 and 1")
        require(all(0 <= b < 1 for b in self.betas), f"{prefix}.betas", f"is {self.betas}, must be in [0, 1)")
        if self.schedule != "wsd":
            refuse_inactive(self, prefix, f"with schedule {self.schedule}", "decay_fraction")
        if self.schedule == "constant":
            refuse_inactive(self, prefix, "with schedule constant", "end_lr_ratio")
        if self.optimizer == "muon":
            refuse_inactive(self, prefix, "with optimizer muon", "lr_base_width")
        else:
            refuse_inactive(self, prefix, f"with optimizer {self.optimizer}", "muon_momentum")
        if self.optimizer == "adafactor":
            refuse_inactive(self, prefix, "with optimizer adafactor", "betas", "eps")

    def _check_start(self, prefix: str) -> None:
        if not self.init_from:
            reason = f"without {prefix}.init_from"
            refuse_inactive(self, prefix, reason, "init_checkpoint", "init_ema", "init_changes")
        is_step = self.init_checkpoint.isdecimal() and self.init_checkpoint.isascii()
        require(
            is_step or self.init_checkpoint in ("last", "best"),
            f"{prefix}.init_checkpoint",
            f"is {self.init_checkpoint!r}, must be last, best or a step",
        )


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on the fixed validation set. It always runs before the first and after the last step."""

    every: int = 0  # steps between evaluations; 0: only before the first and after the last
    max_tokens: int = 0  # evaluate a fixed prefix of the validation set; 0: all
    prompts: tuple[str, ...] = ()  # continued at every evaluation at temperatures 0 and 0.8, for sample texts

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        at_least(0, self, prefix, "every", "max_tokens")
        for i, prompt in enumerate(self.prompts):
            valid = not re.search("[\ud800-\udfff]", prompt)
            require(valid, f"{prefix}.prompts[{i}]", "has an unpaired surrogate, which is not a character")
        repeated = len({*self.prompts}) < len(self.prompts)
        require(not repeated, f"{prefix}.prompts", f"is {self.prompts}, which repeats one")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the training state is saved. The last and the best checkpoint (by validation loss) are always kept."""

    every: int = 500  # steps between checkpoints
    keep: int = 2  # number of latest checkpoints to keep
    keep_every: int = 0  # also keep all checkpoints at multiples of this step; 0: none

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        at_least(1, self, prefix, "every", "keep")
        at_least(0, self, prefix, "keep_every")
        require(
            self.keep_every % self.every == 0,
            f"{prefix}.keep_every",
            f"is {self.keep_every}, must be a multiple of {prefix}.every={self.every}",
        )


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis. One axis may be -1: all remaining devices."""

    data: int = -1  # data-parallel replicas
    fsdp: int = 1  # data-parallel groups that shard the parameters
    tensor: int = 1  # shards of heads, MLP features and vocabulary
    context: int = 1  # shards of every window, for long ones; must divide data.max_length
    sequence: bool = False  # shard activations between layers along the window, over tensor
    slices: int = 0  # groups of devices that a slow network joins, over which data is divided; 0: as the devices say

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor, "context": self.context}
        for name, size in sizes.items():
            require(size >= 1 or size == -1, f"{prefix}.{name}", f"is {size}, must be positive, or -1 for the rest")
        found = tuple(sizes.values())
        require(found.count(-1) <= 1, prefix, f"only one axis can be -1, got {found}")
        at_least(0, self, prefix, "slices")
        require(
            not self.sequence or self.context == 1,
            f"{prefix}.sequence",
            f"cannot be used with {prefix}.context, which divides all activations along the window; leave it at False",
        )


@dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = 1337  # of initial weights, data order and dropout
    model: ModelConfig = field(default_factory=DecoderConfig)
    data: DataSection = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @property
    def batch_size(self) -> int:
        """Windows (or puzzles) per update."""
        return self.train.batch_tokens // self.data.max_length

    def check(self) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        require(self.seed >= 0, "seed", f"is {self.seed}, must not be negative")
        for f in dataclasses.fields(self):
            if f.name != "seed":
                getattr(self, f.name).check(f.name)
        self.model.check_data(self.data)
        if not isinstance(self.model, TextModelConfig):
            refuse_inactive(self.eval, "eval", f"with base {self.model.base}", "prompts")
            refuse_inactive(
                self.mesh, "mesh", f"with base {self.model.base}, which reads no windows of text", "context"
            )
        tokens, length, accum = self.train.batch_tokens, self.data.max_length, self.train.grad_accum
        require(
            tokens >= length,
            "train.batch_tokens",
            f"is {tokens}, smaller than one window of data.max_length={length} tokens",
        )
        require(
            tokens % (length * accum) == 0,
            "train.batch_tokens",
            f"is {tokens}, must be a multiple of data.max_length * train.grad_accum = {length * accum}",
        )


def text_data(config: Config) -> DataConfig:
    """The `data` section of an experiment on text.

    Raises:
      ConfigError: the experiment is not on text.
    """
    if not isinstance(config.data, DataConfig):
        raise ConfigError(f"model.base: is {config.model.base}, which is not a language model")
    return config.data


def text_model(config: Config) -> TextModelConfig:
    """The `model` section of a language model.

    Raises:
      ConfigError: the model is not a language model.
    """
    if not isinstance(config.model, TextModelConfig):
        raise ConfigError(f"model.base: is {config.model.base}, which is not a language model")
    return config.model
