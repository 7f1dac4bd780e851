"""Training tokens/s of a config, alone or in turn with another config or implementation.

Contenders run in turn, a block of steps each, so that changes in the machine's speed affect all of them alike. Speeds
are medians over steps. The ratio is that of the medians; its spread is given by the quartiles of the ratios of single
rounds. Each contender has its own process (`psann_jax.bench.workers`).

Other processes on the same cores slow contenders unequally: PyTorch's threads synchronise after every operation and so
lose more. In that case the ratio of the fastest steps is fairer.
"""

import os
import statistics
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import jax

from psann_jax.bench import device_time, peer, sudoku_peer
from psann_jax.bench.random_task import with_vocabulary
from psann_jax.bench.turns import log, take_turns
from psann_jax.bench.workers import Worker
from psann_jax.config import Config
from psann_jax.config.io import to_dict
from psann_jax.utils.host import usable_cores

_WARMUP_STEPS = 3
_OURS, _PEERS = "psann_jax.bench.ours", "psann_jax.bench.peer"


def sized(config: Config, batch_tokens: int | None, *, compared: bool) -> Config:
    """Returns the config with the batch to measure.

    Args:
      config: the experiment.
      batch_tokens: tokens per step, without gradient accumulation; 0: as configured; None: as configured, but two
        windows in float32 if configs are compared on a CPU.
      compared: whether two configs are compared.

    Raises:
      ConfigError: the config cannot have such batches.
    """
    train = config.train
    if batch_tokens is None and compared and jax.default_backend() == "cpu":
        batch_tokens, train = 2 * config.data.max_length, replace(train, precision="fp32")
    if not batch_tokens:
        return config
    changed = replace(config, train=replace(train, batch_tokens=batch_tokens, grad_accum=1))
    changed.check()
    return changed


def measure(
    config: Config, against: Config | None = None, *, peer_name: str | None = None, n_steps: int = 30
) -> dict[str, Any]:
    """Measures a config, in turn with its rivals if there are any.

    Args:
      config: the experiment; random data replace its own.
      against: another experiment as the rival.
      peer_name: another implementation as the rival. "psannlm" runs with each of its attention implementations, and
        the fastest counts; "torch", for base sudoku, is the model from stock PyTorch layers.
      n_steps: steps of each contender, after the warm-up.

    Returns:
      The result for --json. For the config: tokens_per_s, step_s (median seconds), cpu_s (processor seconds per step,
      over all cores), kernel_times (see `psann_jax.bench.device_time`), compile_s, peak_memory_mb, mfu,
      flops_per_token, n_params, device, attention, inference, versions, n_steps and config; if the task has an
      inference step also its rows/s, for base sudoku filled_puzzles_per_s.
      For the rival, None without one: peer (its name), peer_tokens_per_s, peer_peak_memory_mb, ratio, spread (two
      ratios) and ratio_of_fastest (steps).
      Further differences in words, other_load (cores that other processes kept busy), window_tokens (tokens of a
      window or cells of a puzzle) and contenders, with the results of each.

    Raises:
      UserError: a setting is wrong, the rival is not installed or has no such model, or memory is too small.
    """
    config = with_vocabulary(config)
    contenders = _contenders(config, against, peer_name)
    # Without this, the first of several contenders on a GPU would take its whole memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with ExitStack() as stack:
        workers = []
        for name, module, *args in contenders:
            log(f"{name}: building, then {_WARMUP_STEPS} warm-up steps")
            workers.append(stack.enter_context(Worker(name, module, *args)))
            workers[-1].ask("run", _WARMUP_STEPS)
        rounds, cpu_seconds, other_load = take_turns(workers, n_steps)
        figures = [
            _figures(worker, [blocks[i] for blocks in rounds], contenders[i][2].train.batch_tokens)
            | {"cpu_s": cpu_seconds[i] / n_steps}
            | {"kernel_times": worker.ask("kernel_times") if contenders[i][1] == _OURS else None}
            for i, worker in enumerate(workers)
        ]
        mfu = workers[0].ask("mfu", figures[0]["tokens_per_s"])
        inference = figures[0]["inference"]
        if inference and all(worker.facts.get("inference") == inference for worker in workers):
            for figure, rate in zip(figures, _inference_speeds(workers, n_steps, config.batch_size), strict=True):
                figure[f"filled_{inference}_per_s"] = rate
    rivals = {"psannlm": peer.differences, "torch": sudoku_peer.differences}
    differences = rivals[peer_name](config, on_gpu="CPU" not in figures[0]["device"]) if peer_name else []
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


def _inference_speeds(workers: list[Worker], n_steps: int, batch_size: int) -> list[float]:
    """Rows/s of each contender in inference on training batches."""
    for worker in workers:
        worker.ask("run", _WARMUP_STEPS, False)
    rounds, _, _ = take_turns(workers, n_steps, False)
    steps = [[seconds for blocks in rounds for seconds in blocks[i]] for i in range(len(workers))]
    return [batch_size / statistics.median(seconds) for seconds in steps]


def _contenders(config: Config, against: Config | None, peer_name: str | None) -> list[tuple[Any, ...]]:
    """Name, module and arguments of each contender; the first argument is the config."""
    contenders: list[tuple[Any, ...]] = [(config.model.base, _OURS, config)]
    if against is not None:
        against = with_vocabulary(against)
        contenders.append((f"against: {against.model.base}", _OURS, against))
    if peer_name == "torch":
        sudoku_peer.check(config)
        contenders.append(("torch.nn", "psann_jax.bench.sudoku_peer", config))
    if peer_name == "psannlm":
        peer.check_installed()
        peer.check_updates(config.train, "--peer=psannlm")
        model = peer.check_model(config.model)
        contenders += [(f"psannlm, {kind} attention", _PEERS, config, kind) for kind in peer.attentions(model)]
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
    """Compares the first contender with the fastest of the others."""
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
    """Formats the result of `measure` as a table and a few lines."""
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
    unit = result["inference"]
    if f"filled_{unit}_per_s" in result:
        trained, inferred = (
            ", ".join(f"{f[name] / tokens:,.1f}" for f in result["contenders"])
            for name, tokens in (("tokens_per_s", length), (f"filled_{unit}_per_s", 1))
        )
        lines.append(f"training {trained} {unit}/s of {length} tokens each; inference {inferred} {unit}/s")
    if result["mfu"] is not None:
        gigaflops = result["flops_per_token"] / 1e9
        lines.append(f"MFU {result['mfu']:.1%} = tokens/s * {gigaflops:.4g} model GFLOP per token / peak GFLOP/s")
    if result["ratio"] is not None:
        low, high = result["spread"]
        lines.append(
            f"ratio {result['ratio']:.3f} of tokens/s to {result['peer']} "
            f"(quartiles of the rounds: {low:.3f} to {high:.3f}; fastest steps: {result['ratio_of_fastest']:.3f})"
        )
    for f in result["contenders"]:
        if f["kernel_times"] is not None:
            lines += device_time.lines(f["name"], f["kernel_times"])
    lines += [f"differs in psannlm: {text}" for text in result["differences"]]
    if result["other_load"] > 0.1 * usable_cores():
        busy = f"other processes kept {result['other_load']:.1f} cores busy"
        lines.append(f"{busy}; only the ratio of the fastest steps is reliable")
    return "\n".join([*lines, _MEANING])


_MEANING = (
    "step ms: median; CPU ms: mean processor time per step over all cores; peak MB: resident memory of the\n"
    "contender's process, including compilation, or device memory on an accelerator"
)
