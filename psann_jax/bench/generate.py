"""Tokens/s of generation from a config, alone or in turn with psannlm's `generate_batch`.

Both have random weights and prompts of random ids. A generation is measured whole, from the ids of the prompts to the
ids of the last tokens; a figure is the median of all generations of one batch size.
"""

import dataclasses
import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from absl import flags

from psann_jax.bench import peer
from psann_jax.bench.arguments import CONFIG, JSON, PEER
from psann_jax.bench.random_text import with_vocabulary
from psann_jax.bench.results import check_writable, write_result
from psann_jax.bench.turns import say, take_turns
from psann_jax.bench.workers import Worker
from psann_jax.config import Config, DataConfig, require
from psann_jax.config.io import parse, to_dict
from psann_jax.sample.next_token import Sampling

# The 13 M proxy in float32, when no --config is given.
DEFAULT_ARGUMENTS = ("--config=configs/proxy_13m.py", "--config.train.precision=fp32")

_BATCHES = flags.DEFINE_multi_integer("batch", [1, 8], "Texts at once; can be given several times.", lower_bound=1)
_PROMPT = flags.DEFINE_integer("prompt_tokens", 64, "Tokens of every prompt.", lower_bound=1)
_NEW = flags.DEFINE_integer("max_new_tokens", 128, "Tokens to produce for every prompt.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Generations of each batch size, after the warm-up.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 takes the most probable token.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Choose from that many most probable tokens; 0: from all.")
_TOP_P = flags.DEFINE_float("top_p", 0.9, "Choose from the most probable tokens of that share; 1: from all.")

_HEADLINE_BATCH = 8
_OURS, _PEERS = "psann_jax.bench.our_sampler", "psann_jax.bench.peer_sampler"


def main() -> None:
    """Measures what the flags ask for, prints a table and writes the JSON file."""
    config = parse(CONFIG.value)
    if JSON.value:
        check_writable(Path(JSON.value))
    result = measure(
        config,
        Sampling(temperature=_TEMPERATURE.value, top_k=_TOP_K.value, top_p=_TOP_P.value),
        peer_name=PEER.value,
        batches=_BATCHES.value,
        prompt_tokens=_PROMPT.value,
        max_new_tokens=_NEW.value,
        repeats=_REPEATS.value,
    )
    print(report(result))
    if JSON.value:
        write_result(Path(JSON.value), result)


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
    """Measures generation from a config, in turn with psannlm if asked to.

    Args:
      config: the model and its precision.
      sampling: how tokens are chosen; psannlm takes temperature, top_k and top_p.
      peer_name: "psannlm", with each of its attention implementations; the fastest counts.
      batches: numbers of texts at once.
      prompt_tokens: of every text.
      max_new_tokens: of every text.
      repeats: generations of each batch size and contender, after one of warm-up.

    Returns:
      What --json holds. tokens_per_s, peer_tokens_per_s and ratio of batch 8, or of the largest batch if 8 was not
      asked for; results, for each batch size its batch, ratio and contenders, whose figures are name, tokens_per_s,
      first_s (seconds to the first token), step_s (seconds of a decoding step, prompt and first token left out) and
      steps_s (the same in each part of the text, in its order; empty for psannlm); peak_memory_mb of each contender;
      device, n_params, sampling, config, differences in words, other_load (cores that other processes kept busy).

    Raises:
      UserError: a setting is wrong, psannlm is missing or has no such model.
    """
    sampling.check()
    require(isinstance(config.data, DataConfig), "model.base", f"is {config.model.base}, which writes no text")
    require(peer_name != "torch", "--peer", "torch is for the training of base sudoku; choose psannlm")
    length = config.data.max_length
    require(prompt_tokens <= length, "--prompt_tokens", f"is {prompt_tokens}, but data.max_length is {length}")
    config = with_vocabulary(config)
    contenders: list[tuple[Any, ...]] = [(config.model.base, _OURS, config, prompt_tokens, max_new_tokens, sampling)]
    differences: list[str] = []
    if peer_name is not None:
        peer.check_installed()
        peer.check_model(config.model)
        options = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        contenders += [
            (f"psannlm, {kind} attention", _PEERS, config, kind, prompt_tokens, max_new_tokens, options)
            for kind in peer.attentions(config.model)
        ]
        differences = peer.model_differences(config.model)
    # Without this, the first of several contenders on a GPU would take its whole memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with ExitStack() as stack:
        workers = []
        for name, module, *args in contenders:
            say(f"{name}: building")
            workers.append(stack.enter_context(Worker(name, module, *args)))
        results, loads = [], []
        for batch in batches:
            say(f"batch {batch}: one generation of warm-up, then {repeats} of each")
            for worker in workers:
                worker.ask("run", 1, batch)
            rounds, _, load = take_turns(workers, repeats, batch)
            loads.append(load)
            results.append(_result(batch, [w.name for w in workers], rounds))
        memory = {worker.name: worker.ask("peak_memory_mb") for worker in workers}
        facts = workers[0].facts
    headline = next((r for r in results if r["batch"] == _HEADLINE_BATCH), max(results, key=lambda r: int(r["batch"])))
    return {
        "tokens_per_s": headline["contenders"][0]["tokens_per_s"],
        "peer_tokens_per_s": headline["peer_tokens_per_s"],
        "ratio": headline["ratio"],
        "results": results,
        "peak_memory_mb": memory,
        **facts,
        "prompt_tokens": prompt_tokens,
        "max_new_tokens": max_new_tokens,
        "repeats": repeats,
        "sampling": dataclasses.asdict(sampling),
        "differences": differences,
        "other_load": max(loads),
        "config": to_dict(config),
    }


def _result(batch: int, names: Sequence[str], rounds: Sequence[Sequence[Sequence[dict[str, Any]]]]) -> dict[str, Any]:
    """The figures of one batch size, of every contender and compared."""
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
    parts = zip(*(g["steps_s"] for g in generations), strict=False)  # a text that has ended early has fewer
    return {
        "name": name,
        "tokens_per_s": statistics.median(g["tokens"] / g["seconds"] for g in generations),
        "first_s": statistics.median(g["first_s"] for g in generations),
        "step_s": statistics.median((g["seconds"] - g["first_s"]) / max(g["steps"], 1) for g in generations),
        "steps_s": [statistics.median(part) for part in parts],
    }


def report(result: dict[str, Any]) -> str:
    """The result of `measure` as a table and a few lines."""
    sampling, precision = result["sampling"], result["config"]["train"]["precision"]
    chosen = f"top_p {sampling['top_p']:g}, top_k {sampling['top_k']}" if sampling["temperature"] else "greedy"
    lines = [
        f"{result['device']}; {result['n_params']:,} parameters, {precision}; prompts of {result['prompt_tokens']} "
        f"tokens, {result['max_new_tokens']} new ones each, {chosen}; medians of {result['repeats']} generations",
        f"{'batch':>5}  {'':28}{'tokens/s':>10}{'ratio':>8}{'first token ms':>16}{'step ms':>10}  along the text",
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
    if result["other_load"] > 0.1 * peer.usable_cores():
        lines.append(f"other processes kept {result['other_load']:.1f} cores busy")
    lines.append("psannlm shows nothing before a call ends: its first token is a call for one token alone")
    return "\n".join(lines)
