"""Training tokens/s of a config, alone or in turn with another config or with psannlm.

Contenders take turns, a block of steps each, so that a machine that slows down or is shared slows all of them.
Speeds are medians over steps. The ratio is that of the medians, and its spread the middle half of the ratios
of single rounds. Every contender has a process of its own (`psann_jax.bench.workers`).

Other processes on the same cores slow contenders unequally: PyTorch's threads wait for one another after every
operation, and so lose more. The ratio of the fastest steps is the fairer one then.
"""

import os
import statistics
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections.config_flags import config_flags

from psann_jax.bench import peer, sudoku_peer
from psann_jax.bench.arguments import CONFIG, JSON, PEER, STEPS
from psann_jax.bench.random_text import with_vocabulary
from psann_jax.bench.results import check_writable, write_result
from psann_jax.bench.turns import say, take_turns
from psann_jax.bench.workers import Worker
from psann_jax.config import Config, SudokuConfig
from psann_jax.config.io import parse, to_dict
from psann_jax.utils.errors import UserError

_AGAINST = config_flags.DEFINE_config_file("against", None, "Another experiment to compare with.", lock_config=True)

_BATCH_TOKENS = flags.DEFINE_integer(
    "batch_tokens",
    None,
    "Tokens of a measured step, of each contender; 0: as configured. Left out, that is so too, but with --against on a "
    "CPU, which measures two windows in float32.",
    lower_bound=0,
)

_WARMUP_STEPS = 3
_OURS, _PEERS = "psann_jax.bench.ours", "psann_jax.bench.peer"


def main() -> None:
    """Measures what the flags ask for, prints a table and writes the JSON file."""
    # Without this, the first process on a GPU, be it this one, would take its whole memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    config, against = parse(CONFIG.value), _parse_against()
    if against is not None and PEER.value is not None:
        raise UserError("--against: cannot be used together with --peer; measure one after the other")
    if JSON.value:
        check_writable(Path(JSON.value))
    configs = [_sized(c, against is not None) for c in (config, against) if c is not None]
    result = measure(*configs, peer_name=PEER.value, n_steps=STEPS.value)
    print(report(result))
    if JSON.value:
        write_result(Path(JSON.value), result)


def _parse_against() -> Config | None:
    flag = flags.FLAGS["against"]
    if not flag.present:
        return None
    path = config_flags.get_config_filename(flag)
    if not Path(path.partition(":")[0]).is_file():
        raise UserError(f"--against: {path}: there is no such config file")
    return parse(_AGAINST.value)


def _sized(config: Config, compared: bool) -> Config:
    """The config with the batch that --batch_tokens asks for."""
    tokens, train = _BATCH_TOKENS.value, config.train
    if tokens is None and compared and jax.default_backend() == "cpu":
        tokens, train = 2 * config.data.max_length, replace(train, precision="fp32")
    if not tokens:
        return config
    sized = replace(config, train=replace(train, batch_tokens=tokens, grad_accum=1))
    sized.check()
    return sized


def measure(
    config: Config, against: Config | None = None, *, peer_name: str | None = None, n_steps: int = 30
) -> dict[str, Any]:
    """Measures a config, in turn with its rivals if there are any.

    Args:
      config: the experiment; its text is replaced by random tokens.
      against: another experiment as the rival.
      peer_name: the rival: "psannlm" with each of its attention implementations, of which the fastest counts, or for
        base sudoku "torch", the model from PyTorch's own layers.
      n_steps: of each contender, after the warm-up.

    Returns:
      What --json holds. Of the config: tokens_per_s, step_s (seconds), cpu_s (processor seconds of a step, over
      all cores), compile_s, peak_memory_mb, mfu, n_params, device, attention, versions, n_steps, config.
      Without a rival None: peer (its name), peer_tokens_per_s, peer_peak_memory_mb, ratio, spread (two ratios),
      ratio_of_fastest (steps).
      With base sudoku filled_puzzles_per_s, of grids that are filled without training.
      Also differences, in words; other_load, the cores that other processes kept busy; window_tokens, of
      a window or cells of a puzzle; and contenders, with these figures of each.

    Raises:
      UserError: a setting is wrong, psannlm is missing or has no such model, or memory is too small.
    """
    config = with_vocabulary(config)
    contenders = _contenders(config, against, peer_name)
    # Without this, the first of several contenders on a GPU would take its whole memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with ExitStack() as stack:
        workers = []
        for name, module, *args in contenders:
            say(f"{name}: building, and {_WARMUP_STEPS} steps of warm-up")
            workers.append(stack.enter_context(Worker(name, module, *args)))
            workers[-1].ask("run", _WARMUP_STEPS)
        rounds, cpu_seconds, other_load = take_turns(workers, n_steps)
        figures = [
            _figures(worker, [blocks[i] for blocks in rounds], contenders[i][2].train.batch_tokens)
            | {"cpu_s": cpu_seconds[i] / n_steps}
            for i, worker in enumerate(workers)
        ]
        mfu = workers[0].ask("mfu", figures[0]["tokens_per_s"])
        if isinstance(config.model, SudokuConfig):
            for figure, rate in zip(figures, _filled_per_s(workers, n_steps, config.batch_size), strict=True):
                figure["filled_puzzles_per_s"] = rate
    differences = [] if peer_name != "psannlm" else peer.differences(config, on_gpu="CPU" not in figures[0]["device"])
    return {
        **{name: value for name, value in figures[0].items() if name != "name"},
        "mfu": mfu,
        **_comparison(figures),
        "n_steps": n_steps,
        "window_tokens": config.data.max_length,
        "differences": differences,
        "other_load": other_load,
        "config": to_dict(config),
        "contenders": figures,
    }


def _filled_per_s(workers: list[Worker], n_steps: int, batch_size: int) -> list[float]:
    """Puzzles/s of every contender that only fills grids, with as many iterations as in training."""
    for worker in workers:
        worker.ask("run", _WARMUP_STEPS, False)
    rounds, _, _ = take_turns(workers, n_steps, False)
    steps = [[seconds for blocks in rounds for seconds in blocks[i]] for i in range(len(workers))]
    return [batch_size / statistics.median(seconds) for seconds in steps]


def _contenders(config: Config, against: Config | None, peer_name: str | None) -> list[tuple[Any, ...]]:
    """Name, module and arguments, the first of them the config, of every contender."""
    contenders: list[tuple[Any, ...]] = [(config.model.base, _OURS, config)]
    if against is not None:
        against = with_vocabulary(against)
        contenders.append((f"against: {against.model.base}", _OURS, against))
    if peer_name == "torch":
        sudoku_peer.check(config)
        contenders.append(("torch.nn", "psann_jax.bench.sudoku_peer", config))
    if peer_name == "psannlm":
        peer.check_installed()
        peer.check_model(config.model)
        contenders += [(f"psannlm, {kind} attention", _PEERS, config, kind) for kind in peer.attentions(config.model)]
    return contenders


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
    train, length = result["config"]["train"], result["window_tokens"]
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
    if result["config"]["model"]["base"] == "sudoku":
        trained, done = (
            ", ".join(f"{f[name] / cells:,.1f}" for f in result["contenders"])
            for name, cells in (("tokens_per_s", length), ("filled_puzzles_per_s", 1))
        )
        iterations = result["config"]["model"]["iterations"]
        lines.append(
            f"cells count as tokens: training {trained} puzzles/s; {iterations} iterations alone {done} puzzles/s"
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
