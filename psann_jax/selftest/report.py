"""The files of a validation: summary.json, throughput.csv with its picture, memory.json and README.md."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psann_jax.selftest.pictures import draw_throughput
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import write_json

SUMMARY = "summary.json"
_CSV_COLUMNS = ("timestamp", "base", "batch_tokens", "tokens_per_s")
# Of an entry of memory.json; the first seven have the names of the original's benchmark plan.
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
    """Makes the directory of a validation.

    Raises:
      UserError: it cannot be written, or holds another validation, whose files would be mixed with these.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {error.filename or directory}: {error.strerror or error}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UserError(f"--out: {directory}: cannot be written")
    if (directory / SUMMARY).exists():
        raise UserError(f"--out: {directory}: holds another validation; choose another directory")


def write_report(directory: Path, summary: Mapping[str, Any]) -> None:
    """Writes all files anew.

    Args:
      directory: see `prepare`.
      summary: timestamp_utc, system and results, the records of the checks.
    """
    write_summary(directory / SUMMARY, summary)
    measured = {record["id"]: record["measured"] for record in summary["results"]}
    if rows := measured.get("GPU-03", {}).get("entries"):
        _write(directory / "throughput.csv", throughput_csv(summary["timestamp_utc"], rows))
        draw_throughput(directory / "throughput.png", rows)
    if rows := measured.get("GPU-04", {}).get("entries"):
        entries = [{name: row[name] for name in _MEMORY_FIELDS} for row in rows]
        _write(directory / "memory.json", json.dumps(_for_json(entries), indent=2) + "\n")
    _write(directory / "README.md", readme(summary))


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes the summary as JSON."""
    write_json(path, _for_json(summary))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _for_json(value: Any) -> Any:
    """The same with NaN and infinity as strings, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _for_json(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def throughput_csv(timestamp: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of GPU-03 in four columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    writer.writerows([timestamp, *(row[name] for name in _CSV_COLUMNS[1:])] for row in rows)
    return text.getvalue()


def readme(summary: Mapping[str, Any]) -> str:
    """The tables."""
    system, results = summary["system"], summary["results"]
    versions = ", ".join(f"{name} {v}" for name, v in system["packages"].items() if name in ("psann_jax", "jax"))
    parts = [
        f"# Validation of {summary['timestamp_utc']}\n\n{system['device']}; {versions}; Python {system['python']}.\n",
        _table(
            ("check", "title", "status", "seconds", "what was measured"),
            [(r["id"], r["title"], r["status"], f"{r['seconds']:.1f}", highlights(r)) for r in results],
        ),
    ]
    measured = {record["id"]: record["measured"] for record in results}
    if rows := measured.get("GPU-03", {}).get("entries"):
        parts += ["## Throughput, tokens/s in training\n", _throughput_table(rows), "![throughput](throughput.png)\n"]
    if rows := measured.get("GPU-04", {}).get("entries"):
        parts += ["## Memory\n", _memory_table(rows)]
    return "\n".join(parts)


def highlights(record: Record) -> str:
    """What counts of a record, in a line."""
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
    shares = m["with_over_without"]
    return f"remat: {shares['compiler_memory_mb']:.2f} of the memory, {shares['step_s']:.2f} times the time"


def _parity(m: Any) -> str:
    runs = [(name, one) for base in m.values() if isinstance(base, dict) for name, one in base["meshes"].items()]
    loss, params = (max(one[f"{what}_difference"] for _, one in runs) for what in ("loss", "params"))
    meshes = ", ".join(dict.fromkeys(name for name, _ in runs))
    devices = f"{m['n_devices']} {'forced CPU ' if m['forced_cpu_devices'] else ''}devices"
    return f"{meshes} on {devices}: losses differ by at most {loss:.2g}, parameters by {params:.2g}"


def _generation(m: Any) -> str:
    filtered = sum(one[name]["tokens"] for one in m.values() for name in ("top_k", "top_p"))
    free = [one["unfiltered"] for one in m.values()]
    outside = sum(row["outside_top_k"] for row in free) / sum(row["tokens"] for row in free)
    return f"{filtered} filtered tokens, none outside; unfiltered, {outside:.0%} are outside top-k"


def _resume(m: Any) -> str:
    return f"stopped after {m['stopped_at']} of {m['steps']} updates; all losses and arrays equal"


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
    header = ("base", "d_model", "layers", "precision", "remat", "compiler's account, MB", "peak, MB", "s a step")
    names = ("base", "d_model", "n_layers", "amp", "remat", "compiler_memory_mb", "max_memory_mb", "step_s")
    return _table(header, [tuple(str(row[name]) for name in names) for row in rows])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
