"""Training tokens/s of a config, alone or in turn with another config or with psannlm.

Contenders take turns, a block of steps each, so that a machine that slows down or is shared slows all of them.
Speeds are medians over steps. The ratio is that of the medians, and its spread the middle half of the ratios
of single rounds. Every contender has a process of its own (`psann_jax.bench.workers`).

Other processes on the same cores slow contenders unequally: PyTorch's threads wait for one another after every
operation, and so lose more. The ratio of the fastest steps is the fairer one then.
"""

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from absl import flags
from ml_collections.config_flags import config_flags
from tqdm import tqdm

from psann_jax.bench import peer
from psann_jax.bench.workers import Worker
from psann_jax.config import Config, require
from psann_jax.config_io import parse, to_dict
from psann_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.", lock_config=True)
_AGAINST = config_flags.DEFINE_config_file("against", None, "Another experiment to compare with.", lock_config=True)
_PEER = flags.DEFINE_enum("peer", None, ["psannlm"], "Another implementation of the same model to compare with.")
_STEPS = flags.DEFINE_integer("steps", 30, "Steps to measure, of each contender, after the warm-up.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "A file for the result.")

_WARMUP_STEPS = 3
_ROUNDS = 10
_OURS, _PEERS = "psann_jax.bench.ours", "psann_jax.bench.peer"


def main() -> None:
    """Measures what the flags ask for, prints a table and writes the JSON file."""
    config, against = parse(_CONFIG.value), _parse_against()
    if against is not None and _PEER.value is not None:
        raise UserError("--against: cannot be used together with --peer; measure one after the other")
    if _JSON.value:
        _check_writable(Path(_JSON.value))
    result = measure(config, against=against, peer_name=_PEER.value, n_steps=_STEPS.value)
    print(report(result))
    if _JSON.value:
        _write(Path(_JSON.value), result)


def _parse_against() -> Config | None:
    flag = flags.FLAGS["against"]
    if not flag.present:
        return None
    path = config_flags.get_config_filename(flag)
    if not Path(path.partition(":")[0]).is_file():
        raise UserError(f"--against: {path}: there is no such config file")
    return parse(_AGAINST.value)


def measure(
    config: Config, *, against: Config | None = None, peer_name: str | None = None, n_steps: int = 30
) -> dict[str, Any]:
    """Measures a config, in turn with its rivals if there are any.

    Args:
      config: the experiment; its text is replaced by random tokens.
      against: another experiment as the rival.
      peer_name: "psannlm" as the rival, with each of its attention implementations; the fastest counts.
      n_steps: of each contender, after the warm-up.

    Returns:
      What --json holds. Of the config: tokens_per_s, step_s (seconds), cpu_s (processor seconds of a step, over
      all cores), compile_s, peak_memory_mb, mfu, n_params, device, attention, versions, n_steps, config.
      Without a rival None: peer (its name), peer_tokens_per_s, peer_peak_memory_mb, ratio, spread (two ratios),
      ratio_of_fastest (steps).
      Also differences, in words; other_load, the cores that other processes kept busy; and contenders, with
      these figures of each.

    Raises:
      UserError: a setting is wrong, psannlm is missing or has no such model, or memory is too small.
    """
    config = _with_vocabulary(config)
    contenders = _contenders(config, against, peer_name)
    # Without this, the first of several contenders on a GPU would take its whole memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with ExitStack() as stack:
        workers = []
        for name, module, *args in contenders:
            _say(f"{name}: building, and {_WARMUP_STEPS} steps of warm-up")
            workers.append(stack.enter_context(Worker(name, module, *args)))
            workers[-1].ask("run", _WARMUP_STEPS)
        rounds, cpu_seconds, other_load = _take_turns(workers, n_steps)
        figures = [
            _figures(worker, [blocks[i] for blocks in rounds], contenders[i][2].train.batch_tokens)
            | {"cpu_s": cpu_seconds[i] / n_steps}
            for i, worker in enumerate(workers)
        ]
        mfu = workers[0].ask("mfu", figures[0]["tokens_per_s"])
    differences = [] if peer_name is None else peer.differences(config, on_gpu="CPU" not in figures[0]["device"])
    return {
        **{name: value for name, value in figures[0].items() if name != "name"},
        "mfu": mfu,
        **_comparison(figures),
        "n_steps": n_steps,
        "differences": differences,
        "other_load": other_load,
        "config": to_dict(config),
        "contenders": figures,
    }


def _contenders(config: Config, against: Config | None, peer_name: str | None) -> list[tuple[Any, ...]]:
    """Name, module and arguments, the first of them the config, of every contender."""
    contenders: list[tuple[Any, ...]] = [(config.model.base, _OURS, config)]
    if against is not None:
        against = _with_vocabulary(against)
        contenders.append((f"against: {against.model.base}", _OURS, against))
    if peer_name is not None:
        peer.check_installed()
        peer.check_model(config.model)
        kinds = ("math",) if config.model.positional_encoding == "alibi" else ("math", "sdpa")
        contenders += [(f"psannlm, {kind} attention", _PEERS, config, kind) for kind in kinds]
    return contenders


def _with_vocabulary(config: Config) -> Config:
    """The config with the vocabulary size that its tokenizer would have."""
    settings, size = config.data.tokenizer, config.model.vocab_size
    if not size and (settings.path or settings.kind == "bytes"):
        from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer

        size = (Tokenizer.load(settings.path, settings) if settings.path else byte_tokenizer()).vocab_size
    model = dataclasses.replace(config.model, vocab_size=size or settings.vocab_size)
    return dataclasses.replace(config, model=model)


def _take_turns(workers: Sequence[Worker], n_steps: int) -> tuple[list[list[list[float]]], list[float], float]:
    """Seconds of every step, by round and contender; processor seconds of each; cores that others kept busy."""
    began, busy = time.perf_counter(), _busy_seconds()
    used = [worker.cpu_seconds() for worker in workers]
    n_rounds = min(_ROUNDS, n_steps)
    rounds = []
    with tqdm(total=n_steps * len(workers), unit="step", file=sys.stderr, dynamic_ncols=True, disable=None) as bar:
        for r in range(n_rounds):
            size = n_steps * (r + 1) // n_rounds - n_steps * r // n_rounds
            blocks: list[list[float]] = [[] for _ in workers]
            # Every other round goes backwards, so that nobody is always first after a pause.
            for i in sorted(range(len(workers)), reverse=r % 2 == 1):
                bar.set_description_str(workers[i].name)
                blocks[i] = workers[i].ask("run", size)
                bar.update(size)
            rounds.append(blocks)
            if bar.disable:
                _say(f"round {r + 1} of {n_rounds}")
    used = [worker.cpu_seconds() - before for worker, before in zip(workers, used, strict=True)]
    others = (_busy_seconds() - busy - sum(used)) / (time.perf_counter() - began)
    return rounds, used, max(others, 0.0)


def _busy_seconds() -> float:
    """Processor time that the machine has spent on all processes."""
    times = psutil.cpu_times()
    return float(times.user + times.system)


def _figures(worker: Worker, blocks: list[list[float]], batch_tokens: int) -> dict[str, Any]:
    steps = [seconds for block in blocks for seconds in block]
    return {
        "name": worker.name,
        "tokens_per_s": batch_tokens / statistics.median(steps),
        "step_s": statistics.median(steps),
        "fastest_tokens_per_s": batch_tokens / min(steps),
        "compile_s": None,
        "peak_memory_mb": worker.ask("peak_memory_mb"),
        "block_tokens_per_s": [batch_tokens / statistics.mean(block) for block in blocks],
        **worker.facts,
    }


def _comparison(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratio and spread of the first contender against the fastest of the others."""
    names = ("peer", "peer_tokens_per_s", "peer_peak_memory_mb", "ratio", "spread", "ratio_of_fastest")
    if len(figures) == 1:
        return dict.fromkeys(names)
    ours, rival = figures[0], max(figures[1:], key=lambda f: float(f["tokens_per_s"]))
    ratios = [a / b for a, b in zip(ours["block_tokens_per_s"], rival["block_tokens_per_s"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    ratio, fastest = (ours[name] / rival[name] for name in ("tokens_per_s", "fastest_tokens_per_s"))
    values = (rival["name"], rival["tokens_per_s"], rival["peak_memory_mb"], ratio, [low, high], fastest)
    return dict(zip(names, values, strict=True))


def report(result: dict[str, Any]) -> str:
    """The result of `measure` as a table and a few lines."""
    train, length = result["config"]["train"], result["config"]["data"]["max_length"]
    batch = f"{train['batch_tokens'] // length} x {length} tokens"
    lines = [
        f"{result['device']}; batches of {batch}, {train['precision']}; {result['n_steps']} steps each",
        f"{'':28}{'tokens/s':>10}{'step ms':>10}{'CPU ms':>10}{'compile s':>11}{'peak MB':>10}{'parameters':>14}",
    ]
    for f in result["contenders"]:
        compile_s = "" if f["compile_s"] is None else f"{f['compile_s']:.1f}"
        lines.append(
            f"{f['name']:<28}{f['tokens_per_s']:>10,.0f}{1000 * f['step_s']:>10,.1f}{1000 * f['cpu_s']:>10,.0f}"
            f"{compile_s:>11}{f['peak_memory_mb']:>10,.0f}{f['n_params']:>14,}"
        )
    if result["mfu"] is not None:
        lines.append(f"MFU {result['mfu']:.1%} = {result['mfu_formula']}")
    if result["ratio"] is not None:
        low, high = result["spread"]
        lines.append(
            f"ratio {result['ratio']:.3f} of tokens/s to {result['peer']} "
            f"(middle half of the rounds: {low:.3f} to {high:.3f}; fastest steps: {result['ratio_of_fastest']:.3f})"
        )
    lines += [f"differs in psannlm: {text}" for text in result["differences"]]
    if result["other_load"] > 0.1 * peer.usable_cores():
        lines.append(f"other processes kept {result['other_load']:.1f} cores busy: trust the fastest steps alone")
    return "\n".join([*lines, _MEANING])


_MEANING = (
    "step ms is the median; CPU ms is the mean processor time of a step over all cores; peak MB is of a process\n"
    "that only trains the contender: its resident set, compilation included, or device memory on an accelerator"
)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check_writable(path: Path) -> None:
    """Raises before the measurement what would lose its result."""
    parent = path.absolute().parent
    require(parent.is_dir(), "--json", f"{path}: there is no directory {parent}")
    require(not path.is_dir() and os.access(parent, os.W_OK), "--json", f"{path}: cannot be written")


def _write(path: Path, result: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(path)
