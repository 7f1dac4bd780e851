"""Writes what a sweep found: summary.json, results.csv, report.md, report.html and figures."""

import base64
import csv
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from psann_jax.config.io import to_dict
from psann_jax.experiments.comparisons import Comparison, compare
from psann_jax.experiments.ladder import ladders
from psann_jax.experiments.ladder_plot import draw_ladder
from psann_jax.experiments.outcome import COLUMNS, Outcome
from psann_jax.experiments.page import page_content
from psann_jax.experiments.plots import draw_final, draw_losses
from psann_jax.experiments.run import has_plotly
from psann_jax.experiments.tables import Section, sections
from psann_jax.experiments.trials import Stage
from psann_jax.experiments.tuning_tables import tuning_metrics, tuning_sections
from psann_jax.plots.plotly_page import fill_template, plotly_page
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
    finished = [outcome for outcome in outcomes if outcome.summary is not None]
    comparisons = compare(outcomes, reference, complete=len(outcomes) == n_cases)
    parts = sections(outcomes, n_cases, reference, comparisons)
    if stage is not None:
        parts += tuning_sections(stage)
    figures = _draw(outcomes, workdir) if finished else []
    pages = {o.coordinates_page.stem: _relative(o.coordinates_page, workdir) for o in finished if o.coordinates_page}
    atomic_write(workdir / "report.md", _markdown(name, parts, figures, pages, workdir))
    interactive = _interactive(outcomes, comparisons, reference) if finished and has_plotly() else ""
    atomic_write(workdir / "report.html", _html(name, parts, interactive, figures, pages))


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


def _draw(outcomes: Sequence[Outcome], workdir: Path) -> list[_Figure]:
    finished = [outcome for outcome in outcomes if outcome.summary is not None]
    curves, costs = workdir / "loss_curves.png", workdir / "loss_by_flops.png"
    draw_losses(curves, finished)
    draw_final(costs, [outcome for outcome in outcomes if not outcome.failed])
    figures = [_Figure("Validation loss over training tokens", curves)]
    figures.append(_Figure("Last validation loss by training FLOPs", costs))
    if found := ladders(finished):
        rungs = workdir / "loss_by_compute.png"
        draw_ladder(rungs, found)
        figures.append(_Figure("Loss against compute over the rungs", rungs))
    # One seed per contender and grid setting, as the other seeds look alike.
    sines = {o.case.group: o.sine_figure for o in reversed(finished) if o.sine_figure}
    paths = list(dict.fromkeys(path for path in reversed(sines.values()) if path))
    return figures + [_Figure(f"Sine activations of {path.parent.name}", path) for path in paths]


# --- rendering ------------------------------------------------------------------------------------------


def _relative(path: Path, workdir: Path) -> str:
    return Path(os.path.relpath(path, workdir)).as_posix()


def _markdown(
    name: str, parts: Sequence[Section], figures: Sequence[_Figure], pages: dict[str, str], workdir: Path
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
        links = "\n".join(f"- [{title}]({path})" for title, path in pages.items())
        blocks += ["## Coordinates", links]
    return "\n\n".join(blocks) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_PACKAGE = "psann_jax.experiments"
_STATIC = "Interactive figures need plotly: pip install 'psann_jax[coordinates]', then repeat the command of the sweep."


def _interactive(outcomes: Sequence[Outcome], comparisons: Sequence[Comparison], reference: str) -> str:
    """Returns the part of the page with interactive figures."""
    return plotly_page(_PACKAGE, "figures", page_content(outcomes, comparisons, reference))


def _html(
    name: str, parts: Sequence[Section], interactive: str, figures: Sequence[_Figure], pages: dict[str, str]
) -> str:
    """Returns one HTML page that embeds the figures and links the coordinates pages."""
    head, *rest = map(_html_section, parts)
    # The first two figures show less than the interactive ones.
    images = [_html_figure(figure) for figure in figures[2 if interactive else 0 :]]
    links = [f'<li><a href="{html.escape(path)}">{html.escape(title)}</a></li>' for title, path in pages.items()]
    rest += ["<h2>Figures</h2>", *images] if images else []
    rest += ["<h2>Coordinates</h2>\n<ul>", *links, "</ul>"] if links else []
    slots = {
        "title": html.escape(name),
        "runs": head,
        "figures": interactive or f"<p>{html.escape(_STATIC)}</p>" if figures else "",
        "sections": "\n".join(rest),
    }
    return fill_template((resources.files(_PACKAGE) / "report.html").read_text(encoding="utf-8"), slots)


def _html_section(part: Section) -> str:
    table = f'\n<div class="scroll">{_html_table(part)}</div>' if part.table else ""
    return f"<h2>{html.escape(part.title)}</h2>\n<p>{html.escape(part.text)}</p>{table}"


def _html_figure(figure: _Figure) -> str:
    caption = html.escape(figure.caption)
    encoded = base64.b64encode(figure.path.read_bytes()).decode("ascii")
    image = f'<img alt="{caption}" src="data:image/png;base64,{encoded}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _html_table(part: Section) -> str:
    def cells(values: Sequence[str], tag: str) -> str:
        classes = (' class="number"' if numeric else "" for numeric in part.numeric_columns())
        return "".join(f"<{tag}{c}>{html.escape(v)}</{tag}>" for c, v in zip(classes, values, strict=True))

    head, *rows = part.table
    lines = [f"<tr>{cells(head, 'th')}</tr>", *(f"<tr>{cells(row, 'td')}</tr>" for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"
