"""What a screening found: results.csv, report.md and a picture of the validation losses."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psann_jax.config.io import flatten
from psann_jax.plots.style import line_style, new_figure
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.workdir import CONFIG, SUMMARY
from psann_jax.utils.files import read_json, storage_errors

_COLUMNS: tuple[str, ...] = ("model_type", "dataset", "hidden_dim", "num_layers", "num_heads", "ablation_flags", "seed")
_COLUMNS += ("best_val_loss", "total_steps", "path")


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
      path: its workdir.
      description: the first line of its config file.
      config: its config.json.
      losses: (step, validation loss), by step.
      summary: its summary.json.
    """

    path: Path
    description: str
    config: dict[str, Any]
    losses: list[tuple[int, float]]
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the config."""
        return self.path.name

    @property
    def best(self) -> tuple[int, float]:
        """Step and value of the lowest validation loss after the first update."""
        return min(self.losses[1:] or self.losses, key=lambda pair: pair[1])

    @property
    def last(self) -> tuple[int, float]:
        """Step and value of the last validation loss."""
        return self.losses[-1]


def read_run(path: Path, description: str) -> Run:
    """A run from its workdir."""
    rows = [row for row in read_metrics(path / METRICS) if row["kind"] == "eval"]
    losses = sorted((row["step"], row["loss"]) for row in rows)
    return Run(path, description, read_json(path / CONFIG), losses, read_json(path / SUMMARY))


def differences(run: Run, reference: Run) -> list[str]:
    """The settings of its model that a run has otherwise than the reference, as name=value."""
    own, others = (dict(flatten(r.config["model"])) for r in (run, reference))
    return [f"{name}={value}" for name, value in own.items() if name in others and others[name] != value]


def write_report(runs: Sequence[Run], workdir: Path, *, reference: str) -> None:
    """Writes results.csv, report.md and val_loss.png.

    Args:
      runs: in the order of the tables.
      workdir: where to.
      reference: the name of the run that the others of its base are ablations of; if it is missing, so is the table.

    Raises:
      UserError: the disk is full or cannot be written.
    """
    by_name = {run.name: run for run in runs}
    base = by_name.get(reference)
    with storage_errors(workdir):
        _write_csv(runs, base, workdir / "results.csv")
        _plot(runs, workdir / "val_loss.png")
        parts = [_header(runs), _fixed_step(runs), _best_and_last(runs), _ranking(runs, base), _throughput(runs)]
        if base is not None:
            parts.append(_ablations(runs, base))
        (workdir / "report.md").write_text("\n\n".join([*parts, _config(base or runs[0])]) + "\n")


def _flags(run: Run, base: Run | None) -> str:
    same_base = base is not None and run.config["model"]["base"] == base.config["model"]["base"]
    return (", ".join(differences(run, base)) if base and same_base else "") or "default"


def _write_csv(runs: Sequence[Run], base: Run | None, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for run in sorted(runs, key=lambda run: run.best[1]):
            model = run.config["model"]
            sizes = [model["d_model"], model["n_layers"], model["n_heads"]]
            dataset = "+".join(run.config["data"]["sources"])
            results = [run.config["seed"], f"{run.best[1]:.6f}", run.summary["steps"], run.path]
            writer.writerow([model["base"], dataset, *sizes, _flags(run, base), *results])


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _header(runs: Sequence[Run]) -> str:
    steps = sorted({run.summary["steps"] for run in runs})
    seeds = sorted({run.config["seed"] for run in runs})
    tokens = runs[0].summary["tokens"] / 1e6
    text = ", ".join(runs[0].config["data"]["sources"])
    one = " One seed: a difference of a hundredth or two says nothing." if len(seeds) == 1 else ""
    return (
        f"# Screening\n\n{len(runs)} runs of {' or '.join(f'{s:,}' for s in steps)} updates ({tokens:,.1f} M tokens "
        f"each) on {text}, seed {', '.join(map(str, seeds))}. Losses are mean cross entropies in nats a token over the "
        f"same fixed validation windows.{one}\n\n![validation losses](val_loss.png)"
    )


def _fixed_step(runs: Sequence[Run]) -> str:
    """At the last step that all runs have evaluated."""
    common = set.intersection(*(set(dict(run.losses)) for run in runs))
    step = max(common)
    rows = sorted(((run.name, f"{dict(run.losses)[step]:.4f}") for run in runs), key=lambda row: row[1])
    return f"## Fixed step\n\n{_table(['run', f'val loss at {step:,}'], rows)}"


def _best_and_last(runs: Sequence[Run]) -> str:
    rows = [
        (run.name, f"{run.best[1]:.4f}", f"{run.best[0]:,}", f"{run.last[1]:.4f}", f"{run.last[0]:,}") for run in runs
    ]
    return "## Best and last\n\n" + _table(["run", "best val loss", "best step", "last val loss", "last step"], rows)


def _ranking(runs: Sequence[Run], base: Run | None) -> str:
    ranked = sorted(runs, key=lambda run: run.best[1])
    rows = [
        (
            i + 1,
            run.config["model"]["base"],
            _flags(run, base),
            f"{run.best[1]:.4f}",
            f"{math.exp(min(run.best[1], 700)):.5g}",
            f"{run.best[0]:,}",
            run.path.name,
        )
        for i, run in enumerate(ranked)
    ]
    head = ["rank", "model", "flags", "best val loss", "ppl", "step", "run"]
    return f"## Ranking\n\n{_table(head, rows)}"


def _throughput(runs: Sequence[Run]) -> str:
    def row(run: Run) -> tuple[str, ...]:
        rate, tokens = run.summary["tokens_per_s"], run.config["train"]["batch_tokens"]
        memory, parameters = run.summary["peak_memory_mb"], run.summary["n_params"]
        return (
            run.name,
            f"{rate / tokens:.3f}",
            f"{tokens / rate:.2f}",
            f"{rate:,.0f}",
            f"{memory:,.0f}",
            f"{parameters:,}",
        )

    head = ["run", "steps/s", "s/step", "tokens/s", "peak MB", "parameters"]
    return f"## Throughput\n\nWithout compilation, evaluation and checkpoints.\n\n{_table(head, [*map(row, runs)])}"


def _ablations(runs: Sequence[Run], base: Run) -> str:
    """Every run against the reference: by its differing settings, or as another model."""
    rows = []
    for run in runs:
        if run.name == base.name:
            continue
        other = run.config["model"]["base"] != base.config["model"]["base"]
        what = f"another model: {run.config['model']['base']}" if other else ", ".join(differences(run, base))
        delta = run.best[1] - base.best[1]
        order = "lower" if delta < 0 else "higher"
        note = f"{run.name} is {order}, by one seed" if abs(delta) >= 0.02 else "no difference shown by one seed"
        rows.append(
            (f"{base.name} and {run.name}", run.description, what, f"{base.best[1]:.4f}", f"{run.best[1]:.4f}",
             f"{delta:+.4f}", note)
        )  # fmt: skip
    head = ["comparison", "what it is", "settings", base.name, "compared", "delta", "note"]
    return f"## Ablations\n\nBest validation losses.\n\n{_table(head, rows)}"


def _config(run: Run) -> str:
    keys = ("data.max_length", "data.tokenizer.vocab_size", "train.batch_tokens", "train.grad_accum", "train.optimizer",
            "train.lr", "train.schedule", "train.warmup_steps", "train.weight_decay", "train.grad_clip",
            "train.precision", "model.init")  # fmt: skip
    flat = dict(flatten(run.config))
    return f"## Settings of {run.name}\n\n" + "\n".join(f"- `{key}`: {flat[key]}" for key in keys if key in flat)


def _plot(runs: Sequence[Run], path: Path) -> None:
    figure = new_figure()
    axes = figure.subplots()
    for i, run in enumerate(runs):
        steps, losses = zip(*run.losses, strict=True)
        axes.plot(steps, losses, label=run.name, **line_style(i) | {"marker": ""})
    # What comes before the first tenth is warm-up, and so much higher that it would hide the rest.
    late = [loss for run in runs for step, loss in run.losses if step >= 0.1 * run.last[0]]
    margin = 0.05 * (max(late) - min(late)) or 0.1
    axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.set_xlabel("step (updates)")
    axes.set_ylabel("validation loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")
