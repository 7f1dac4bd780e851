"""The settings of an experiment: a frozen dataclass for every section, with its checks.

Every setting acts or raises: one that could have no effect beside the others is refused. Config files and
JSON become these dataclasses in `psann_jax.config.io`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from psann_jax.config.checks import at_least, refuse_inactive, require, share
from psann_jax.config.decoder import DecoderConfig
from psann_jax.config.gravity import NGTConfig, VanillaConfig
from psann_jax.config.sudoku import PuzzlesConfig, SudokuConfig

# Base name -> the dataclass of its `model` section. The networks are in psann_jax/models/network.py.
BASES: dict[str, type] = {
    "ngt": NGTConfig,
    "respsann": DecoderConfig,
    "sgrpsann": DecoderConfig,
    "sudoku": SudokuConfig,
    "transformer": DecoderConfig,
    "vanilla": VanillaConfig,
    "waveresnet": DecoderConfig,
}


# --- data -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    kind: Literal["auto", "bpe", "unigram", "wordpiece", "sentencepiece", "bytes"] = "auto"
    path: str = ""  # a prebuilt tokenizer.json or sentencepiece .model; then nothing is trained
    vocab_size: int = 32000  # of a trained tokenizer, special tokens included
    min_frequency: int = 2
    sample_bytes: int = 50_000_000  # text that a tokenizer is trained on; 0: all
    pad_token: str = "<pad>"
    bos_token: str = "<bos>"
    eos_token: str = "<eos>"
    unk_token: str = "<unk>"

    def check(self, prefix: str) -> None:
        if self.kind == "bytes" or self.path:
            why = f"with {prefix}.path" if self.path else "with the bytes tokenizer"
            refuse_inactive(self, prefix, why, "vocab_size", "min_frequency", "sample_bytes")
        at_least(8, self, prefix, "vocab_size")
        at_least(1, self, prefix, "min_frequency")
        at_least(0, self, prefix, "sample_bytes")
        tokens = [getattr(self, f"{t}_token") for t in SPECIAL_TOKENS]
        require(
            all(tokens) and len(set(tokens)) == len(tokens),
            f"{prefix}.pad_token",
            f"the special tokens {tokens} must be four different, non-empty strings",
        )


SPECIAL_TOKENS = ("pad", "bos", "eos", "unk")


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it is cut into windows."""

    sources: tuple[str, ...] = ("builtin:python",)  # see psann_jax/data/sources.py for the forms
    weights: tuple[float, ...] = ()  # share of each source in training; (): by size
    valid_sources: tuple[str, ...] = ()  # fixed validation text; (): a split of the sources
    valid_fraction: float = 0.01  # of the documents, when valid_sources is empty
    split_seed: int = 1337
    text_field: str = "text"  # of .jsonl, .parquet, tfds: and hf: records
    document: Literal["line", "file"] = "line"  # what one document of a .txt file is
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    max_length: int = 1024  # tokens in a window
    pack: bool = True  # False: one document a row, padded
    document_mask: bool = True  # False: a token sees the earlier documents of its window
    cache_dir: str = ""  # token shards; "": the user's cache directory
    num_workers: int = 2  # that read windows ahead of training

    def check(self, prefix: str) -> None:
        require(bool(self.sources), f"{prefix}.sources", "is empty, name at least one source")
        require(
            len(self.weights) in (0, len(self.sources)),
            f"{prefix}.weights",
            f"has {len(self.weights)} values for {len(self.sources)} sources",
        )
        require(all(w > 0 for w in self.weights), f"{prefix}.weights", f"is {self.weights}, must be positive")
        require(
            bool(self.valid_sources) or 0 < self.valid_fraction < 1,
            f"{prefix}.valid_fraction",
            f"is {self.valid_fraction}, must be between 0 and 1",
        )
        at_least(2, self, prefix, "max_length")
        at_least(1, self, prefix, "num_workers")
        require(
            self.pack or self.document_mask,
            f"{prefix}.document_mask",
            "cannot be off when data.pack is off: a row holds one document then",
        )
        self.tokenizer.check(f"{prefix}.tokenizer")


# --- training -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation: how long, how fast, in which precision."""

    steps: int = 1000
    batch_tokens: int = 32768  # of one update, over all devices and micro-batches
    grad_accum: int = 1  # micro-batches an update is summed from
    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    lr: float = 2e-4
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # after the warm-up
    warmup_steps: int = 100
    end_lr_ratio: float = 0.1  # the last update's share of lr
    decay_fraction: float = 0.2  # of the steps, at the end of the wsd schedule
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    weight_decay_on: Literal["matrices", "all"] = "matrices"  # all: also norms, biases, sine, alpha
    grad_clip: float = 1.0  # global norm; 0: off
    sam_rho: float = 0.0  # how far uphill the gradient is taken (sharpness-aware minimisation, twice the work); 0: off
    ema_decay: float = 0.0  # of the averaged weights, which are evaluated beside the live ones; 0: none
    label_smoothing: float = 0.0
    z_loss: float = 0.0  # weight of the squared log-normaliser
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"  # of the computation; weights stay float32
    # What the backward pass recomputes; iteration and nested with base sudoku, block, dots and full with the others.
    remat: Literal["none", "block", "dots", "full", "iteration", "nested"] = "none"
    scan_layers: bool = True  # one compiled layer for all; False: unrolled
    max_bad_steps: int = 10  # non-finite updates in a row that end the run
    log_every: int = 10

    def check(self, prefix: str) -> None:
        at_least(1, self, prefix, "steps", "batch_tokens", "grad_accum", "log_every", "max_bad_steps")
        at_least(0, self, prefix, "warmup_steps", "weight_decay", "grad_clip", "z_loss", "sam_rho")
        share(self, prefix, "label_smoothing", "ema_decay")
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
        if self.optimizer == "adafactor":
            refuse_inactive(self, prefix, "with optimizer adafactor", "betas", "eps")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on the fixed validation set; it always runs before the first and after the last step."""

    every: int = 0  # steps between evaluations; 0: only before and after
    max_tokens: int = 0  # a fixed prefix of the validation set; 0: all of it

    def check(self, prefix: str) -> None:
        at_least(0, self, prefix, "every", "max_tokens")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the training state is saved. The last and the best (by validation loss) are always kept."""

    every: int = 500  # steps between checkpoints
    keep: int = 2  # latest ones that are kept
    keep_every: int = 0  # keeps the checkpoints at multiples of this for good; 0: none

    def check(self, prefix: str) -> None:
        at_least(1, self, prefix, "every", "keep")
        at_least(0, self, prefix, "keep_every")
        require(
            self.keep_every % self.every == 0,
            f"{prefix}.keep_every",
            f"is {self.keep_every}, must be a multiple of {prefix}.every={self.every}",
        )


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1, for all the remaining devices."""

    data: int = -1  # copies of the model, each with its share of the batch
    fsdp: int = 1  # shares of the parameters, each with its share of the batch
    tensor: int = 1  # shares of heads, MLP features and vocabulary
    sequence: bool = False  # between layers, activations are split along the window over tensor

    def check(self, prefix: str) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require(size >= 1 or size == -1, f"{prefix}.{name}", f"is {size}, must be positive, or -1 for the rest")
        found = tuple(sizes.values())
        require(found.count(-1) <= 1, prefix, f"only one axis can be -1, got {found}")


# Base name -> the dataclass of its `data` section, where that is not DataConfig.
DATA_SECTIONS: dict[str, type] = {"sudoku": PuzzlesConfig}


@dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = 1337  # of initial weights, data order and dropout
    model: Any = field(default_factory=DecoderConfig)
    data: Any = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @property
    def batch_size(self) -> int:
        """Windows or puzzles in one update."""
        return self.train.batch_tokens // self.data.max_length

    def check(self) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        require(self.seed >= 0, "seed", f"is {self.seed}, must not be negative")
        for f in dataclasses.fields(self):
            if f.name != "seed":
                getattr(self, f.name).check(f.name)
        positions = getattr(self.model, "n_positions", 0) or self.data.max_length
        require(
            self.data.max_length <= positions,
            "data.max_length",
            f"is {self.data.max_length}, but the model has {positions} positions; raise model.n_positions",
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
