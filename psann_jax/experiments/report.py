"""What a sweep found: summary.json, summary.csv, leaderboard.md and report.html."""

import base64
import csv
import hashlib
import html
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from psann_jax.config import DataConfig, PuzzlesConfig
from psann_jax.config.io import to_dict
from psann_jax.experiments.plots import draw_final, draw_losses
from psann_jax.experiments.statistics import mean_and_deviation, paired_difference
from psann_jax.experiments.sweeps import Case, flops_per_token, pairs
from psann_jax.train.hardware import device_description
from psann_jax.utils.files import write_json

_COLUMNS: tuple[str, ...] = ("base", "contender", "seed", "budget", "settings", "status", "param_count", "train_steps")
_COLUMNS += ("train_tokens", "train_tokens_per_s", "train_elapsed_s", "train_flops", "peak_memory_mb")
_COLUMNS += ("val_loss", "val_ppl", "val_accuracy", "val_solved", "code")


@dataclass(frozen=True)
class Outcome:
    """What a case came to.

    Attributes:
      case: the run.
      summary: its summary.json; None if training failed.
      rows: its metrics.jsonl.
      error: why training, or what comes after it, failed; None if nothing did.
      codes: versions of what has trained it, see `psann_jax.experiments.run.code_version`.
      lm_eval: results of lm_eval's tasks, as psann_jax.cli.lm_eval writes them.
      sine_picture: of its sine activations, or None.
    """

    case: Case
    summary: dict[str, Any] | None
    rows: list[dict[str, Any]]
    error: str | None
    codes: list[dict[str, str]] = field(default_factory=list)
    lm_eval: dict[str, Any] | None = None
    sine_picture: Path | None = None

    @property
    def val_loss(self) -> float:
        """At the end; NaN if training failed."""
        return math.nan if self.summary is None else float(self.summary["val_loss"])

    def metrics(self) -> dict[str, Any]:
        """The run's metrics.json."""
        case, train = self.case, self.case.config.train
        found: dict[str, Any] = {
            "base": case.config.model.base,
            "contender": case.contender,
            "seed": case.seed,
            "budget": case.budget,
            "settings": dict(case.settings),
            "status": "ok" if self.error is None else "error",
            "code": " ".join(code["code"] for code in self.codes),
            "trained_by": self.codes,
        }
        if self.error is not None:
            found |= {"error": self.error}
        if self.summary is None:
            return found
        tokens = train.steps * train.batch_tokens
        sources, valid_sources = _sources(case.config.data)
        return found | {
            "param_count": self.summary["n_params"],
            "train_steps": train.steps,
            "train_tokens": tokens,
            "train_tokens_per_s": self.summary["tokens_per_s"],
            "train_elapsed_s": tokens / self.summary["tokens_per_s"] if self.summary["tokens_per_s"] else None,
            "train_flops": tokens * flops_per_token(case.config),
            "peak_memory_mb": self.summary["peak_memory_mb"],
            "train_loss": self.summary["train_loss"],
            "val_loss": self.summary["val_loss"],
            "val_ppl": self.summary["val_ppl"],
            "val_accuracy": self.summary["val_accuracy"],
            "val_solved": self.summary.get("val_solved"),
            "corpus_path": list(sources),
            "valid_sha256": _hashes(valid_sources),
            "lm_eval": None if self.lm_eval is None else self.lm_eval["results"],
            "train_config": to_dict(case.config)["train"],
            "data_config": to_dict(case.config)["data"],
        }


def _sources(data: DataConfig | PuzzlesConfig) -> tuple[Sequence[str], Sequence[str]]:
    """What is trained and validated on."""
    if isinstance(data, PuzzlesConfig):
        return data.files or ("generated puzzles",), data.valid_files
    return data.sources, data.valid_sources


def _hashes(sources: Sequence[str]) -> dict[str, str]:
    """SHA-256 of those sources that are single files, as `psann_jax.experiments.make_eval` writes them."""
    paths = [Path(source) for source in sources if Path(source).is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def write_report(name: str, outcomes: Sequence[Outcome], n_cases: int, reference: str, workdir: Path) -> None:
    """Writes the files of a sweep.

    Args:
      name: of the sweep.
      outcomes: of the cases that are trained or have failed.
      n_cases: of all.
      reference: the contender that the others are compared with.
      workdir: where to.
    """
    metrics = [outcome.metrics() for outcome in outcomes]
    facts = {
        "timestamp_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_name": name,
        "bases": sorted({m["base"] for m in metrics}),
        "seeds": sorted({m["seed"] for m in metrics}),
        "system": {"device": device_description(), "jax": version("jax")},
    }
    write_json(workdir / "summary.json", {**facts, "n_cases": n_cases, "results": metrics})
    write_json(workdir / "config_used.json", {o.case.name: to_dict(o.case.config) for o in outcomes})
    _write_csv(metrics, workdir / "summary.csv")
    finished = [outcome for outcome in outcomes if outcome.summary is not None]
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    sections = _sections(finished, failed, n_cases, reference)
    markdown = "\n\n".join(_markdown(section) for section in sections)
    (workdir / "leaderboard.md").write_text(f"# {name}\n\n{markdown}\n", encoding="utf-8")
    pictures = []
    if finished:
        draw_losses(workdir / "loss_curves.png", finished)
        draw_final(workdir / "loss_by_flops.png", finished)
        pictures = [workdir / "loss_curves.png", workdir / "loss_by_flops.png"]
        sines = {o.case.group: o.sine_picture for o in reversed(finished) if o.sine_picture}  # of the first seed
        pictures += [picture for picture in sines.values() if picture]
    (workdir / "report.html").write_text(_page(name, sections, pictures), encoding="utf-8")


def _write_csv(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", restval="")
        writer.writeheader()
        for row in metrics:
            writer.writerow(row | {"settings": " ".join(f"{k}={v}" for k, v in row["settings"].items())})


# --- tables ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Section:
    """A title, a text, and a table of which the first row is the head."""

    title: str
    text: str
    table: list[list[str]]


def _sections(finished: Sequence[Outcome], failed: Sequence[Outcome], n_cases: int, reference: str) -> list[_Section]:
    sections = [
        _Section("Runs", f"{len(finished)} of {n_cases} finished, {len(failed)} failed. {_common_text(finished)}", [])
    ]
    for budget in dict.fromkeys(o.case.budget for o in finished):
        group = [o for o in finished if o.case.budget == budget]
        sections += [_leaderboard(budget, group), _differences(budget, group, reference)]
    sections += [_lm_eval_scores(finished)] if any(o.lm_eval for o in finished) else []
    if len({_code(o) for o in finished}) > 1:
        rows = [["run", "trained by"], *([o.case.name, _code(o)] for o in finished)]
        sections.append(_Section("Other code", _OTHER_CODE, rows))
    if failed:
        rows = [["run", "error"], *([o.case.name, str(o.error)] for o in failed)]
        sections.append(_Section("Failed", "What these lack is in no table above.", rows))
    return sections


def _common_text(finished: Sequence[Outcome]) -> str:
    if not finished:
        return ""
    config, seeds = finished[0].case.config, sorted({o.case.seed for o in finished})
    sources = ", ".join(_sources(config.data)[0])
    puzzles = isinstance(config.data, PuzzlesConfig)
    what, where = ("an empty cell", "puzzles") if puzzles else ("a token", "windows")
    length = "" if puzzles else f" windows of {config.data.max_length} tokens;"
    return (
        f"{'Puzzles' if puzzles else 'Text'}: {sources};{length} seeds {', '.join(map(str, seeds))}. Losses are mean "
        f"cross entropies in nats {what} over the same validation {where}, after the last update."
    )


_OTHER_CODE = "These runs were not all trained by the same code: differences may be the code's."


def _code(outcome: Outcome) -> str:
    """What has trained a run, in a line."""
    names = ("psann_jax", "code", "jax", "flax", "optax")
    return ", then ".join(" ".join(f"{n} {code[n]}" for n in names) for code in outcome.codes) or "not recorded"


def _lm_eval_scores(finished: Sequence[Outcome]) -> _Section:
    """Every task's scores, mean and deviation over the seeds."""
    scores: dict[tuple[str, str, str], list[float]] = {}
    for outcome in finished:
        for task, found in (outcome.lm_eval or {"results": {}})["results"].items():
            for key, value in found.items():
                name = key.split(",")[0]
                if isinstance(value, float | int) and not name.endswith(("_stderr", "sample_len")):
                    scores.setdefault((task, name, _label(outcome.case)), []).append(float(value))
    rows = [["task", "score", "contender", "seeds", "mean", "deviation"]]
    for names, values in sorted(scores.items()):
        mean, deviation = mean_and_deviation(values)
        rows.append([*names, str(len(values)), f"{mean:.4f}", _or_dash(deviation)])
    limits = sorted({o.lm_eval["limit"] for o in finished if o.lm_eval})
    text = f"By lm_eval, on the first {' or '.join(map(str, limits))} examples of each task."
    return _Section("Tasks", text, rows)


_EQUAL = {
    "tokens": "the same number of training tokens",
    "flops": "the same training FLOPs",
    "parameters": "the same number of parameters and of training tokens",
    "seconds": "the same seconds of training on this device",
}


def _groups(outcomes: Sequence[Outcome]) -> dict[tuple[Any, ...], list[Outcome]]:
    groups: dict[tuple[Any, ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.case.group, []).append(outcome)
    return groups


def _or_dash(deviation: float) -> str:
    """Of one seed there is none."""
    return "-" if math.isnan(deviation) else f"{deviation:.4f}"


def _label(case: Case) -> str:
    return " ".join([case.contender, *(f"{name}={value}" for name, value in case.settings)])


def _leaderboard(budget: str, outcomes: Sequence[Outcome]) -> _Section:
    rows = []
    solves = isinstance(outcomes[0].case.config.data, PuzzlesConfig)
    for group in _groups(outcomes).values():
        mean, deviation = mean_and_deviation([o.val_loss for o in group])
        metrics = [o.metrics() for o in group]
        ema_params = ("train_tokens_per_s", "peak_memory_mb", "val_accuracy")
        rate, memory, accuracy = (statistics.fmean(m[key] for m in metrics) for key in ema_params)
        row = [_label(group[0].case), str(len(group)), f"{mean:.4f}", _or_dash(deviation), f"{math.exp(mean):.2f}"]
        if solves:
            row.append(f"{statistics.fmean(m['val_solved'] for m in metrics):.4f}")
        row += [f"{accuracy:.4f}", f"{metrics[0]['train_tokens'] / 1e6:.2f}", f"{metrics[0]['train_flops']:.3g}"]
        rows.append((mean, [*row, f"{metrics[0]['param_count']:,}", f"{rate:,.0f}", f"{memory:,.0f}"]))
    head = ["contender", "seeds", "val loss", "deviation", "ppl", *["solved"] * solves, "accuracy", "M tokens", "FLOPs"]
    table = [[*head, "parameters", "tokens/s", "peak MB"], *(row for _, row in sorted(rows, key=lambda pair: pair[0]))]
    return _Section(f"At {_EQUAL[budget]}", "Means over the seeds, and their sample standard deviation.", table)


def _differences(budget: str, outcomes: Sequence[Outcome], reference: str) -> _Section:
    """Each contender against the reference, seed by seed."""
    by_case = {o.case.name: o for o in outcomes}
    found: dict[tuple[Any, ...], list[tuple[Outcome, Outcome]]] = {}
    for case, other in pairs([o.case for o in outcomes], reference):
        found.setdefault(case.group, []).append((by_case[case.name], by_case[other.name]))
    rows = [["contender", "against", "seeds", "difference", "95 % interval", "what it says", "seeds needed"]]
    for group in found.values():
        d = paired_difference([o.val_loss for o, _ in group], [r.val_loss for _, r in group])
        better = "better" if d.mean < 0 else "worse"
        verdict = better if d.shown else "no difference shown" if d.seeds > 1 else "one seed says nothing"
        interval = f"{d.low:+.4f} to {d.high:+.4f}" if d.seeds > 1 else "-"
        needed = "-" if d.seeds_needed is None else str(d.seeds_needed)
        names = [_label(outcome.case) for outcome in group[0]]
        rows.append([*names, str(d.seeds), f"{d.mean:+.4f}", interval, verdict, needed])
    text = (
        "Validation loss minus the reference's of the same seed; the interval is the bootstrap of the pairs. The last "
        "column: seeds with which a true difference of this size would be found in four of five experiments."
    )
    return _Section(f"Differences at {_EQUAL[budget]}", text, rows)


def _markdown(section: _Section) -> str:
    lines = [f"## {section.title}", "", section.text]
    if section.table:
        head, *rows = section.table
        lines += ["", "| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #ccc; padding: 0.25em 0.6em; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { background: #f2f2f2; }
img { max-width: 100%; }
"""


def _page(name: str, sections: Sequence[_Section], pictures: Sequence[Path]) -> str:
    """One HTML page with everything in it."""
    parts = [f"<h1>{html.escape(name)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>\n<p>{html.escape(section.text)}</p>")
        if section.table:
            head, *rows = section.table
            parts.append(_html_table(head, rows))
    for path in pictures:
        encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        caption = "" if path.parent == pictures[0].parent else html.escape(path.parent.name)
        parts.append(f'<p>{caption}<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{encoded}"></p>')
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(values: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values)

    lines = [f"<tr>{cells(head, 'th')}</tr>", *(f"<tr>{cells(row, 'td')}</tr>" for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"
