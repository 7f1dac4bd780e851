"""The files of a self-test: summary.json, throughput.csv and .png, memory.json and README.md."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psann_jax.selftest.plots import draw_throughput
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, storage_errors, write_json

SUMMARY = "summary.json"
_CSV_COLUMNS = ("timestamp", "base", "batch_tokens", "tokens_per_s")
# Fields of an entry in memory.json; the first seven names come from the benchmark plan of the original PSANN.
_MEMORY_FIELDS = (
    "base",
    "d_model",
    "n_layers",
    "grad_checkpoint",
    "amp",
    "max_memory_mb",
    "elapsed_s",
    "compiler_memory_mb",
    "step_s",
    "steps",
    "batch_tokens",
    "max_length",
    "remat",
)

Record = Mapping[str, Any]


def prepare(directory: Path) -> None:
    """Creates the directory of a self-test.

    Raises:
      UserError: The directory cannot be written, or has a summary.json of another self-test or a run.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {error.filename or directory}: {error.strerror or error}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UserError(f"--out: {directory}: cannot be written")
    if (directory / SUMMARY).exists():
        raise UserError(f"--out: {directory}: has the {SUMMARY} of another self-test or of a run; choose another")


def write_report(directory: Path, summary: Mapping[str, Any]) -> None:
    """Writes all files, replacing those of an earlier call.

    Args:
      directory: a directory created by `prepare`.
      summary: timestamp_utc, system, and results: the records of the checks.

    Raises:
      UserError: A file cannot be written.
    """
    with storage_errors(directory):
        write_summary(directory / SUMMARY, summary)
        measured = {record["id"]: record["measured"] for record in summary["results"]}
        if rows := measured.get("GPU-03", {}).get("entries"):
            atomic_write(directory / "throughput.csv", throughput_csv(summary["timestamp_utc"], rows))
            draw_throughput(directory / "throughput.png", rows)
        if rows := measured.get("GPU-04", {}).get("entries"):
            entries = [{name: row[name] for name in _MEMORY_FIELDS} for row in rows]
            atomic_write(directory / "memory.json", json.dumps(_for_json(entries), indent=2) + "\n")
        atomic_write(directory / "README.md", readme(summary))


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes the summary as JSON, with NaN and infinity as strings."""
    write_json(path, _for_json(summary))


def _for_json(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON does not allow, by strings."""
    if isinstance(value, Mapping):
        return {name: _for_json(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def throughput_csv(timestamp: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the entries of GPU-03 as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    writer.writerows([timestamp, *(row[name] for name in _CSV_COLUMNS[1:])] for row in rows)
    return text.getvalue()


def readme(summary: Mapping[str, Any]) -> str:
    """Returns the report in Markdown."""
    system, results = summary["system"], summary["results"]
    versions = ", ".join(f"{name} {v}" for name, v in system["packages"].items() if name in ("psann_jax", "jax"))
    parts = [
        f"# Self-test of {summary['timestamp_utc']}\n\n{system['device']}; {versions}; Python {system['python']}.\n",
        _table(
            ("check", "title", "status", "seconds", "result"),
            [(r["id"], r["title"], r["status"], f"{r['seconds']:.1f}", highlights(r)) for r in results],
        ),
    ]
    measured = {record["id"]: record["measured"] for record in results}
    if rows := measured.get("GPU-03", {}).get("entries"):
        parts += ["## Throughput, training tokens/s\n", _throughput_table(rows), "![throughput](throughput.png)\n"]
    if rows := measured.get("GPU-04", {}).get("entries"):
        parts += ["## Memory\n", _memory_table(rows)]
    return "\n".join(parts)


def highlights(record: Record) -> str:
    """Returns one line on a record: the reason unless it passed, else the main measurements."""
    if "reason" in record:
        return str(record["reason"]).replace("|", "/").replace("\n", " ")
    measured = record["measured"]
    return _HIGHLIGHTS[record["id"]](measured) if record["id"] in _HIGHLIGHTS else ""


def _environment(m: Any) -> str:
    return "first loss " + ", ".join(f"{base} {one['loss']:.2f}" for base, one in m["bases"].items())


def _precision(m: Any) -> str:
    worst = {p: max(runs[p]["difference"] for runs in m.values()) for p in ("bf16", "fp16")}
    return "losses differ from fp32 by at most " + ", ".join(f"{v:.2g} ({p})" for p, v in worst.items())


def _throughput(m: Any) -> str:
    best = max(m["entries"], key=lambda row: row["tokens_per_s"])
    return f"best {best['tokens_per_s']:,.0f} tokens/s ({best['base']}, {best['batch_tokens']:,} tokens)"


def _memory(m: Any) -> str:
    ratios = m["with_over_without"]
    return f"remat: {ratios['compiler_memory_mb']:.2f} times the memory, {ratios['step_s']:.2f} times the time"


def _parity(m: Any) -> str:
    runs = [(name, one) for base in m.values() if isinstance(base, dict) for name, one in base["meshes"].items()]
    loss, params = (max(one[f"{what}_difference"] for _, one in runs) for what in ("loss", "params"))
    meshes = ", ".join(dict.fromkeys(name for name, _ in runs))
    devices = f"{m['n_devices']} {'forced CPU ' if m['forced_cpu_devices'] else ''}devices"
    return f"{meshes} on {devices}: losses differ by at most {loss:.2g}, parameters by {params:.2g}"


def _generation(m: Any) -> str:
    filtered = sum(one[name]["tokens"] for one in m.values() for name in ("top_k", "top_p"))
    unfiltered = [one["unfiltered"] for one in m.values()]
    outside = sum(row["outside_top_k"] for row in unfiltered) / sum(row["tokens"] for row in unfiltered)
    return f"{filtered} filtered tokens, none outside; {outside:.0%} of the unfiltered tokens are outside top-k"


def _resume(m: Any) -> str:
    return f"stopped after {m['stopped_at']} of {m['steps']} updates; all losses and arrays are equal"


_HIGHLIGHTS = {
    "GPU-01": _environment,
    "GPU-02": _precision,
    "GPU-03": _throughput,
    "GPU-04": _memory,
    "GPU-05": _parity,
    "GPU-06": _parity,
    "GPU-07": _generation,
    "GPU-08": _resume,
}


def _throughput_table(rows: Sequence[Mapping[str, Any]]) -> str:
    sizes = sorted({row["batch_tokens"] for row in rows})
    rates = {(row["base"], row["batch_tokens"]): row["tokens_per_s"] for row in rows}
    bases = list(dict.fromkeys(row["base"] for row in rows))
    body = [(base, *(f"{rates[base, n]:,.0f}" if (base, n) in rates else "" for n in sizes)) for base in bases]
    return _table(("base", *(f"{n:,} tokens" for n in sizes)), body)


def _memory_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ("base", "d_model", "n_layers", "precision", "remat", "compiler's estimate, MB", "peak, MB", "s per step")
    names = ("base", "d_model", "n_layers", "amp", "remat", "compiler_memory_mb", "max_memory_mb", "step_s")
    return _table(header, [tuple(str(row[name]) for name in names) for row in rows])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
