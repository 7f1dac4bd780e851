"""The result of one run of a sweep, and its row in summary.json and results.csv."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psann_jax.config.io import to_dict
from psann_jax.experiments.budgets import flops_per_token
from psann_jax.experiments.cases import Case, Settings
from psann_jax.train.evaluation import WindowLosses

DIVERGED = "train.max_bad_steps: "  # begins the error of a run that ended because its loss was not finite

# The columns of results.csv; docs/comparisons.md explains them.
COLUMNS: tuple[str, ...] = ("base", "contender", "differences", "settings", "stage", "budget", "seed")
COLUMNS += ("status", "dataset")
COLUMNS += ("d_model", "n_layers", "n_heads", "param_count", "train_steps", "train_tokens", "train_tokens_per_s")
COLUMNS += ("train_elapsed_s", "train_flops", "peak_memory_mb", "train_loss", "val_loss", "val_ppl", "val_accuracy")
COLUMNS += ("val_solved", "best_val_loss", "best_step", "code", "shares", "path")


@dataclass(frozen=True)
class Outcome:
    """The result of a case.

    Attributes:
      case: the run.
      folder: its workdir; cases with equal configs share one.
      summary: its summary.json; None if training failed.
      rows: its metrics.jsonl.
      error: why training, or a step after it, failed; None if nothing did.
      codes: versions of the code that trained it, see `psann_jax.experiments.run.code_version`.
      shares: whether it shared cores or a GPU with other runs while it trained, so that its speed is not its own.
      lm_eval: results of lm_eval's tasks, as written by `psann-jax lm_eval`.
      sine_figure: the figure of its sine activations, if any.
      coordinates_page: the page of its coordinates, if any.
      windows: its last losses by validation window, if the run wrote them.
      samples: its sample texts, as written by `psann-jax samples`.
      valid_sha256: the SHA-256 of its validation files when it started, by path; None for a run of an earlier version.
    """

    case: Case
    folder: Path
    summary: dict[str, Any] | None
    rows: list[dict[str, Any]]
    error: str | None
    codes: list[dict[str, str]] = field(default_factory=list)
    shares: bool = False
    lm_eval: dict[str, Any] | None = None
    sine_figure: Path | None = None
    coordinates_page: Path | None = None
    windows: WindowLosses | None = None
    samples: dict[str, Any] | None = None
    valid_sha256: dict[str, str] | None = None

    @property
    def val_loss(self) -> float:
        """The validation loss after the last update; NaN if training failed."""
        return math.nan if self.summary is None else float(self.summary["val_loss"])

    @property
    def failed(self) -> bool:
        """Whether training ended without a result, for another reason than a loss that was not finite."""
        return self.summary is None and not str(self.error).startswith(DIVERGED)

    @property
    def diverged(self) -> bool:
        """Whether the loss was not finite at the end of the training."""
        return not self.failed and not math.isfinite(self.val_loss)

    @property
    def update_tokens(self) -> float:
        """Tokens per update, without padding; NaN if training failed."""
        return math.nan if self.summary is None else self.summary["tokens"] / self.summary["steps"]

    @property
    def train_flops(self) -> float:
        """Model FLOPs of the training; padding is computed, too."""
        train, n_params = self.case.config.train, None if self.summary is None else self.summary["n_params"]
        return train.steps * train.batch_tokens * flops_per_token(self.case.config, n_params)

    @property
    def losses(self) -> dict[int, float]:
        """Step -> validation loss, by step."""
        return dict(sorted((row["step"], row["loss"]) for row in self.rows if row["kind"] == "eval"))

    @property
    def best(self) -> tuple[int, float]:
        """Step and value of the lowest validation loss after the first update."""
        points = list(self.losses.items())
        return min(points[1:] or points, key=lambda point: (math.isnan(point[1]), point[1]))

    def metrics(self) -> dict[str, Any]:
        """Returns the run's metrics.json, which is also its entry in the sweep's summary.json."""
        case, config = self.case, self.case.config
        metrics: dict[str, Any] = {
            "base": config.model.base,
            "contender": case.contender,
            "differences": dict(case.differences),
            "settings": dict((*case.settings, *case.chosen)),
            "stage": case.stage,
            "budget": case.budget,
            "seed": case.seed,
            "status": "ok" if self.error is None else "error",
            "dataset": "+".join(config.data.train_names),
            "d_model": config.model.d_model,
            "n_layers": config.model.n_layers,
            "n_heads": config.model.n_heads,
            "code": " ".join(code["code"] for code in self.codes),
            "trained_by": self.codes,
            "shares": self.shares,
            "path": str(self.folder),
        }
        if self.error is not None:
            metrics["error"] = self.error
        return metrics if self.summary is None else metrics | self._measured(self.summary)

    def _measured(self, summary: dict[str, Any]) -> dict[str, Any]:
        config = self.case.config
        tokens, rate = summary["tokens"], summary["tokens_per_s"]
        best_step, best_loss = self.best
        return {
            "param_count": summary["n_params"],
            "train_steps": config.train.steps,
            "train_tokens": tokens,
            "train_tokens_per_s": rate,
            "train_elapsed_s": tokens / rate if rate else None,
            "train_flops": self.train_flops,
            "peak_memory_mb": summary["peak_memory_mb"],
            "train_loss": summary["train_loss"],
            "val_loss": summary["val_loss"],
            "val_ppl": summary["val_ppl"],
            "val_accuracy": summary["val_accuracy"],
            "val_solved": summary.get("val_solved"),
            "best_val_loss": best_loss,
            "best_step": best_step,
            "corpus_path": list(config.data.train_names),
            "valid_sha256": self.valid_sha256,
            "lm_eval": None if self.lm_eval is None else self.lm_eval["results"],
            "train_config": to_dict(config)["train"],
            "data_config": to_dict(config)["data"],
        }


def train_flops(runs: Iterable[Outcome]) -> float:
    """Model FLOPs of each of several runs that differ in their seed.

    They are those of a trained one if there is one: a run that diverged does not say how large its vocabulary was.
    """
    return max(runs, key=lambda run: run.summary is not None).train_flops


def settings_text(settings: Settings) -> str:
    """Returns settings as "name=value, name=value"."""
    return ", ".join(f"{name}={value}" for name, value in settings)
