"""Generated tokens/s of a config, alone or in turn with psannlm's `generate_batch`.

Weights and prompts are random. A measurement covers a whole generation, from the ids of the prompts to the ids of the
last tokens; results are medians over all generations of one batch size.
"""

import dataclasses
import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from psann_jax.bench import peer
from psann_jax.bench.random_task import with_vocabulary
from psann_jax.bench.turns import log, take_turns
from psann_jax.bench.workers import Worker
from psann_jax.config import Config, require, text_data
from psann_jax.config.io import to_dict
from psann_jax.sample.settings import Sampling
from psann_jax.utils.host import usable_cores

_HEADLINE_BATCH = 8
_OURS, _PEERS = "psann_jax.bench.our_sampler", "psann_jax.bench.peer_sampler"


def measure(
    config: Config,
    sampling: Sampling,
    *,
    peer_name: str | None = None,
    batches: Sequence[int] = (1, 8),
    prompt_tokens: int = 64,
    max_new_tokens: int = 128,
    repeats: int = 10,
) -> dict[str, Any]:
    """Measures generation from a config, in turn with psannlm if `peer_name` is given.

    Args:
      config: the model and its precision.
      sampling: how tokens are chosen; psannlm supports temperature, top_k and top_p.
      peer_name: "psannlm" runs with each of its attention implementations, and the fastest counts.
      batches: numbers of texts generated at once.
      prompt_tokens: length of each prompt.
      max_new_tokens: tokens generated per text.
      repeats: generations of each batch size and contender, after one warm-up generation.

    Returns:
      The result for --json. tokens_per_s, peer_tokens_per_s and ratio are those of batch 8, or of the largest batch if
      8 is not among the batches. results has an entry for each batch size: batch, ratio and contenders, and for each
      contender name, tokens_per_s, first_s (seconds to the first token), step_s (seconds per decoding step, without
      prompt and first token) and steps_s (the same for each part of the text in order; empty for psannlm). Further
      peak_memory_mb of each contender, device, n_params, sampling, config, differences in words and other_load (cores
      that other processes kept busy).

    Raises:
      UserError: a setting is wrong, psannlm is not installed or has no such model.
    """
    sampling.check()
    length = text_data(config).max_length
    require(prompt_tokens <= length, "--prompt_tokens", f"is {prompt_tokens}, but data.max_length is {length}")
    config = with_vocabulary(config)
    contenders: list[tuple[Any, ...]] = [(config.model.base, _OURS, config, prompt_tokens, max_new_tokens, sampling)]
    differences: list[str] = []
    if peer_name is not None:
        peer.check_installed()
        model = peer.check_model(config.model)
        options = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        contenders += [
            (f"psannlm, {kind} attention", _PEERS, config, kind, prompt_tokens, max_new_tokens, options)
            for kind in peer.attentions(model)
        ]
        differences = peer.model_differences(model)
    results, measured = _measure_in_turn(contenders, batches, repeats)
    headline = next((r for r in results if r["batch"] == _HEADLINE_BATCH), max(results, key=lambda r: int(r["batch"])))
    return {
        "tokens_per_s": headline["contenders"][0]["tokens_per_s"],
        "peer_tokens_per_s": headline["peer_tokens_per_s"],
        "ratio": headline["ratio"],
        "results": results,
        **measured,
        "prompt_tokens": prompt_tokens,
        "max_new_tokens": max_new_tokens,
        "repeats": repeats,
        "sampling": dataclasses.asdict(sampling),
        "differences": differences,
        "config": to_dict(config),
    }


def _measure_in_turn(
    contenders: Sequence[tuple[Any, ...]], batches: Sequence[int], repeats: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs the contenders in turn; returns a result for each batch size and what holds for all of them."""
    # Without this, the first of several contenders on a GPU would take its whole memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with ExitStack() as stack:
        workers = []
        for name, module, *args in contenders:
            log(f"{name}: building")
            workers.append(stack.enter_context(Worker(name, module, *args)))
        results, loads = [], []
        for batch in batches:
            log(f"batch {batch}: one warm-up generation, then {repeats} of each contender")
            for worker in workers:
                worker.ask("run", 1, batch)
            rounds, _, load = take_turns(workers, repeats, batch)
            loads.append(load)
            results.append(_result(batch, [w.name for w in workers], rounds))
        memory = {worker.name: worker.ask("peak_memory_mb") for worker in workers}
        return results, {"peak_memory_mb": memory, **workers[0].facts, "other_load": max(loads)}


def _result(batch: int, names: Sequence[str], rounds: Sequence[Sequence[Sequence[dict[str, Any]]]]) -> dict[str, Any]:
    """Results of one batch size: each contender and the comparison."""
    figures = [
        _figures(name, [generation for blocks in rounds for generation in blocks[i]]) for i, name in enumerate(names)
    ]
    rival = max(figures[1:], key=lambda f: float(f["tokens_per_s"]), default=None)
    return {
        "batch": batch,
        "peer_tokens_per_s": rival and rival["tokens_per_s"],
        "ratio": rival and figures[0]["tokens_per_s"] / rival["tokens_per_s"],
        "contenders": figures,
    }


def _figures(name: str, generations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    parts = zip(*(g["steps_s"] for g in generations), strict=False)  # a text that ended early has fewer parts
    return {
        "name": name,
        "tokens_per_s": statistics.median(g["tokens"] / g["seconds"] for g in generations),
        "first_s": statistics.median(g["first_s"] for g in generations),
        "step_s": statistics.median((g["seconds"] - g["first_s"]) / max(g["steps"], 1) for g in generations),
        "steps_s": [statistics.median(part) for part in parts],
    }


def report(result: dict[str, Any]) -> str:
    """Formats the result of `measure` as a table and a few lines."""
    sampling, precision = result["sampling"], result["config"]["train"]["precision"]
    chosen = f"top_p {sampling['top_p']:g}, top_k {sampling['top_k']}" if sampling["temperature"] else "greedy"
    lines = [
        f"{result['device']}; {result['n_params']:,} parameters, {precision}; prompts of {result['prompt_tokens']} "
        f"tokens, {result['max_new_tokens']} new ones each, {chosen}; medians of {result['repeats']} generations",
        f"{'batch':>5}  {'':28}{'tokens/s':>10}{'ratio':>8}{'first token ms':>16}{'step ms':>10}  by part of the text",
    ]
    for r in result["results"]:
        for f in r["contenders"]:
            ratio = f"{r['contenders'][0]['tokens_per_s'] / f['tokens_per_s']:.2f}"
            parts = ", ".join(f"{1000 * s:.2f}" for s in f["steps_s"])
            lines.append(
                f"{r['batch']:>5}  {f['name']:<28}{f['tokens_per_s']:>10,.0f}{ratio:>8}{1000 * f['first_s']:>16,.1f}"
                f"{1000 * f['step_s']:>10,.2f}  {parts}"
            )
    lines += [f"differs in psannlm: {text}" for text in result["differences"]]
    if result["other_load"] > 0.1 * usable_cores():
        lines.append(f"other processes kept {result['other_load']:.1f} cores busy")
    lines.append("psannlm returns nothing before a call ends; its first token is timed by a call for one token")
    return "\n".join(lines)
