"""Writes what a sweep found: summary.json, results.csv, report.md, report.html and figures."""

import base64
import csv
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from psann_jax.config.io import to_dict
from psann_jax.experiments.outcome import COLUMNS, Outcome
from psann_jax.experiments.plots import draw_final, draw_losses
from psann_jax.experiments.tables import Section, sections
from psann_jax.experiments.trials import Stage
from psann_jax.experiments.tuning_tables import tuning_metrics, tuning_sections
from psann_jax.utils.files import atomic_write, write_json


def write_report(
    name: str, outcomes: Sequence[Outcome], n_cases: int, reference: str, workdir: Path, stage: Stage | None = None
) -> None:
    """Writes the files of a sweep.

    Args:
      name: the title.
      outcomes: the cases that are trained or have failed.
      n_cases: the number of all cases.
      reference: the contender that the others are compared with.
      workdir: an existing folder.
      stage: the tuning stage, if the sweep has one.

    Raises:
      OSError: a file cannot be written.
    """
    metrics = [outcome.metrics() for outcome in outcomes]
    tuning = {} if stage is None else {"tuning": tuning_metrics(stage)}
    facts = {
        "timestamp_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_name": name,
        "bases": sorted({m["base"] for m in metrics}),
        "seeds": sorted({m["seed"] for m in metrics}),
        # Of the runs: asking for the devices in this process would hold them.
        "system": {"devices": sorted(_devices(outcomes)), "jax": version("jax")},
    }
    write_json(workdir / "summary.json", {**facts, "n_cases": n_cases, "results": metrics, **tuning})
    write_json(workdir / "config_used.json", {o.case.name: to_dict(o.case.config) for o in outcomes})
    trials = [] if stage is None else [outcome.metrics() for outcome in stage.outcomes]
    _write_csv([*metrics, *trials], workdir / "results.csv")
    parts = sections(outcomes, n_cases, reference)
    if stage is not None:
        parts += tuning_sections(stage)
    finished = [outcome for outcome in outcomes if outcome.summary is not None]
    figures = _draw(finished, workdir) if finished else []
    pages = list(dict.fromkeys(o.coordinates_page for o in finished if o.coordinates_page))
    atomic_write(workdir / "report.md", _markdown(name, parts, figures, pages, workdir))
    atomic_write(workdir / "report.html", _html(name, parts, figures, pages, workdir))


def _devices(outcomes: Sequence[Outcome]) -> set[str]:
    return {o.summary["device"] for o in outcomes if o.summary is not None and "device" in o.summary}


def _write_csv(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", restval="")
        writer.writeheader()
        for row in metrics:
            pairs = {key: " ".join(f"{k}={v}" for k, v in row[key].items()) for key in ("settings", "differences")}
            writer.writerow(row | pairs)


# --- figures --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Figure:
    """A PNG file and its caption."""

    caption: str
    path: Path


def _draw(finished: Sequence[Outcome], workdir: Path) -> list[_Figure]:
    curves, costs = workdir / "loss_curves.png", workdir / "loss_by_flops.png"
    draw_losses(curves, finished)
    draw_final(costs, finished)
    figures = [_Figure("Validation loss over training tokens", curves)]
    figures.append(_Figure("Last validation loss by training FLOPs", costs))
    # One seed per contender and grid setting, as the other seeds look alike.
    sines = {o.case.group: o.sine_figure for o in reversed(finished) if o.sine_figure}
    paths = list(dict.fromkeys(path for path in reversed(sines.values()) if path))
    return figures + [_Figure(f"Sine activations of {path.parent.name}", path) for path in paths]


# --- rendering ------------------------------------------------------------------------------------------


def _relative(path: Path, workdir: Path) -> str:
    return Path(os.path.relpath(path, workdir)).as_posix()


def _markdown(
    name: str, parts: Sequence[Section], figures: Sequence[_Figure], pages: Sequence[Path], workdir: Path
) -> str:
    blocks = [f"# {name}"]
    for part in parts:
        blocks += [f"## {part.title}", part.text]
        if part.table:
            head, *rows = part.table
            rule = "".join("---:|" if numeric else "---|" for numeric in part.numeric_columns())
            lines = ["| " + " | ".join(head) + " |", f"|{rule}"]
            blocks.append("\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)]))
    if figures:
        blocks.append("## Figures")
        blocks += [f"![{figure.caption}]({_relative(figure.path, workdir)})" for figure in figures]
    if pages:
        links = "\n".join(f"- [{page.stem}]({_relative(page, workdir)})" for page in pages)
        blocks += ["## Coordinates", links]
    return "\n\n".join(blocks) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #ccc; padding: 0.25em 0.6em; text-align: left; }
.number { text-align: right; }
th { background: #f2f2f2; }
figure { margin: 1em 0; }
img { max-width: 100%; }
"""


def _html(name: str, parts: Sequence[Section], figures: Sequence[_Figure], pages: Sequence[Path], workdir: Path) -> str:
    """Returns one HTML page that embeds the figures and links the coordinates pages."""
    blocks = [f"<h1>{html.escape(name)}</h1>"]
    for part in parts:
        blocks.append(f"<h2>{html.escape(part.title)}</h2>\n<p>{html.escape(part.text)}</p>")
        if part.table:
            blocks.append(_html_table(part))
    if figures:
        blocks.append("<h2>Figures</h2>")
    for figure in figures:
        caption = html.escape(figure.caption)
        encoded = base64.b64encode(figure.path.read_bytes()).decode("ascii")
        image = f'<img alt="{caption}" src="data:image/png;base64,{encoded}">'
        blocks.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    if pages:
        links = (f'<li><a href="{html.escape(_relative(page, workdir))}">{page.stem}</a></li>' for page in pages)
        blocks.append("<h2>Coordinates</h2>\n<ul>" + "".join(links) + "</ul>")
    body = "\n".join(blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _html_table(part: Section) -> str:
    def cells(values: Sequence[str], tag: str) -> str:
        classes = (' class="number"' if numeric else "" for numeric in part.numeric_columns())
        return "".join(f"<{tag}{c}>{html.escape(v)}</{tag}>" for c, v in zip(classes, values, strict=True))

    head, *rows = part.table
    lines = [f"<tr>{cells(head, 'th')}</tr>", *(f"<tr>{cells(row, 'td')}</tr>" for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"
