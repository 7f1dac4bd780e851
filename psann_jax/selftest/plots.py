"""The plot of a self-test: training speed against batch size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psann_jax.plots.style import line_style, new_figure


def draw_throughput(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Plots training tokens/s against batch size, one line per base, as a PNG.

    Args:
      path: the file to write.
      rows: entries of GPU-03 with base, batch_tokens and tokens_per_s.
    """
    figure = new_figure()
    axes = figure.subplots()
    for i, base in enumerate(dict.fromkeys(row["base"] for row in rows)):
        points = sorted((row["batch_tokens"], row["tokens_per_s"]) for row in rows if row["base"] == base)
        axes.plot(*zip(*points, strict=True), label=base, **line_style(i))
    sizes = sorted({row["batch_tokens"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens per batch")
    axes.set_ylabel("training tokens/s")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, format="png")
