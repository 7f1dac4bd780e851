"""The Sudoku transformer from stock PyTorch layers, as a contender.

`torch.nn.TransformerEncoder` with additive positions, iterated with its own prediction fed back, as the original study
describes it; AdamW on the mean cross entropy of all iterations over the empty cells. Nothing here imports JAX.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from psann_jax.bench.peer import autocast, check_updates, end_of_work, peak_memory_mb
from psann_jax.bench.timing import time_steps
from psann_jax.config import Config, ConfigError, SudokuConfig, require
from psann_jax.data.sudoku.random_puzzles import RandomPuzzles
from psann_jax.utils.extras import require_extra
from psann_jax.utils.host import usable_cores


def check(config: Config) -> SudokuConfig:
    """Returns the `model` section; raises UserError if torch is missing or the config is not supported."""
    require_extra("--peer=torch", "torch")
    model, train = config.model, config.train
    if not isinstance(model, SudokuConfig):
        raise ConfigError(f"model.base: is {model.base}; --peer=torch is for base sudoku")
    require(model.positional_encoding == "additive", "model.positional_encoding", "must be additive with --peer=torch")
    require(model.mlp_activation in ("relu", "gelu"), "model.mlp_activation", "must be relu or gelu with --peer=torch")
    check_updates(train, "--peer=torch")
    require(train.optimizer == "adamw", "train.optimizer", "must be adamw with --peer=torch")
    require(train.grad_accum == 1, "train.grad_accum", "must be 1 with --peer=torch")
    return model


def differences(config: Config, *, on_gpu: bool) -> list[str]:
    """Describes the settings of the config that the model and its optimizer do not support."""
    found = (
        (config.train.precision != "fp32" and not on_gpu, "float32 on CPU, where it runs without mixed precision"),
        (config.train.weight_decay_on != "all", "weight decay on all parameters"),
    )
    return [text for holds, text in found if holds]


def build_model(config: SudokuConfig, remat: str = "none") -> Any:
    """Builds the model, a `torch.nn.Module`: puzzles (B, 81) -> logits (T, B, 81, 9).

    Args:
      config: sizes and options.
      remat: what the backward pass recomputes, as `train.remat`: none, block, iteration or nested.
    """
    import torch
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    def recomputed(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
        return partial(checkpoint, function, use_reentrant=False) if remat in names else function

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            d = config.d_model
            self.embed, self.feedback, self.head = nn.Linear(10, d), nn.Linear(9, d), nn.Linear(d, 9)
            self.row, self.column, self.box = (nn.Embedding(9, d) for _ in range(3))
            layer = nn.TransformerEncoderLayer(
                d,
                config.n_heads,
                config.d_mlp,
                config.dropout,
                config.mlp_activation,
                batch_first=True,
                norm_first=True,
            )
            self.blocks = nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)
            cell = torch.arange(81)
            row, column = cell // 9, cell % 9
            for name, index in (("rows", row), ("columns", column), ("boxes", 3 * (row // 3) + column // 3)):
                self.register_buffer(name, index)

        def forward(self, puzzles: torch.Tensor) -> torch.Tensor:
            h = self.embed(nn.functional.one_hot(puzzles, 10).to(self.embed.weight))
            p = self.embed.weight.new_zeros(*puzzles.shape, 9)
            all_logits = []
            for _ in range(config.iterations):
                h, p, logits = recomputed(self.iterate, "iteration", "nested")(h, p)
                all_logits.append(logits)
            return torch.stack(all_logits)

        def iterate(self, h: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, ...]:
            h = h + self.feedback(p) + self.row(self.rows) + self.column(self.columns) + self.box(self.boxes)
            for block in self.blocks.layers:
                h = recomputed(block, "block", "nested")(h)
            logits = self.head(h)
            return h, logits.softmax(-1), logits

    return Model()


class SudokuPeer:
    """Model and AdamW on the random batches of a config.

    Attributes:
      facts: n_params, attention, threads and versions.
    """

    def __init__(self, config: Config):
        """Builds the model on the GPU if there is one, otherwise on all usable CPU cores."""
        import torch

        train = config.train
        self._config, self._device = config, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(usable_cores())
        torch.manual_seed(config.seed)
        self._model = build_model(check(config), train.remat).to(self._device).train()
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=train.lr,
            betas=train.betas,
            eps=train.eps,
            weight_decay=train.weight_decay,
            fused=self._device.type == "cuda",
        )
        self._autocast = autocast(self._device, train.precision)
        fp16 = self._device.type == "cuda" and train.precision == "fp16"
        self._scaler = torch.amp.GradScaler("cuda", enabled=fp16)
        self._batches = RandomPuzzles(config).train_batches(seed=config.seed, batch_size=config.batch_size)
        self.facts: dict[str, Any] = {
            "n_params": sum(p.numel() for p in self._model.parameters()),
            "attention": "stock",
            "inference": "puzzles",
            "threads": torch.get_num_threads(),
            "versions": {"torch": version("torch")},
        }

    def run(self, n_steps: int, training: bool = True) -> list[float]:
        """Runs steps; see `psann_jax.bench.ours.Ours.run`."""
        return time_steps(self._step if training else self._fill_step, n_steps, ahead=self._device.type == "cuda")

    def _fill_step(self) -> Callable[[], object]:
        import torch

        puzzles = torch.from_numpy(next(self._batches)["puzzles"].astype(np.int64)).to(self._device)
        self._model.eval()
        with torch.inference_mode(), self._autocast():
            torch.where(puzzles == 0, 1 + self._model(puzzles)[-1].argmax(-1), puzzles)
        self._model.train()
        return end_of_work(self._device)

    def _step(self) -> Callable[[], object]:
        import torch

        batch = next(self._batches)
        puzzles, solutions = (
            torch.from_numpy(batch[name].astype(np.int64)).to(self._device) for name in ("puzzles", "solutions")
        )
        with self._autocast():
            logits = self._model(puzzles)[:, puzzles == 0].float()
            target = (solutions[puzzles == 0] - 1).expand(len(logits), -1)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        if self._config.train.grad_clip:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.train.grad_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return end_of_work(self._device)

    def peak_memory_mb(self) -> float:
        """See `psann_jax.bench.peer.peak_memory_mb`."""
        return peak_memory_mb(self._device)


def make(config: Config) -> SudokuPeer:
    """Makes the contender, in its worker's process."""
    return SudokuPeer(config)
