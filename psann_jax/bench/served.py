"""Generated tokens/s of the server for many clients, alone or against psannlm, which has no server.

Weights and prompts are random. psannlm's `generate_batch` gets one request at a time, as it would from a queue; its
figures leave out any server around it.
"""

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from psann_jax.bench import peer
from psann_jax.bench.random_task import with_vocabulary
from psann_jax.bench.turns import log, take_turns
from psann_jax.bench.workers import Worker
from psann_jax.config import Config, require, text_data
from psann_jax.config.io import to_dict
from psann_jax.sample.settings import Sampling
from psann_jax.utils.extras import require_extra
from psann_jax.utils.host import usable_cores


@dataclasses.dataclass(frozen=True)
class Load:
    """What the clients ask for.

    Attributes:
      clients: numbers of clients at once; each sends one request and waits for its answer.
      slots: texts that the server generates at once.
      prompt_tokens: length of each prompt.
      max_new_tokens: tokens generated per request.
      repeats: times that all clients send a request, after one for warm-up.
    """

    clients: Sequence[int] = (1, 64)
    slots: int = 16
    prompt_tokens: int = 64
    max_new_tokens: int = 128
    repeats: int = 3


def measure(config: Config, sampling: Sampling, load: Load, *, peer_name: str | None = None) -> dict[str, Any]:
    """Measures the server with a config, in turn with psannlm if `peer_name` is given.

    Args:
      config: the model and its precision.
      sampling: how tokens are chosen; psannlm supports temperature, top_k and top_p.
      load: see `Load`.
      peer_name: "psannlm" runs with each of its attention implementations.

    Returns:
      The result for --json: results has an entry for each number of clients: clients and contenders, and for each
      contender name, tokens_per_s and latency_s (seconds of a request), medians over the repeats. Further
      peak_memory_mb of each contender, device, n_params, the load, sampling, config, differences in words and
      other_load (cores that other processes kept busy).

    Raises:
      UserError: a setting is wrong, or a package is not installed or has no such model.
    """
    sampling.check()
    require_extra("bench serve", "starlette", "uvicorn")
    data, n_prompt, n_new = text_data(config), load.prompt_tokens, load.max_new_tokens
    longest = data.max_length
    require(n_prompt <= longest, "--prompt_tokens", f"is {n_prompt}, but data.max_length is {longest}")
    # The server's context need not be that of a training.
    config = dataclasses.replace(config, data=dataclasses.replace(data, max_length=max(longest, n_prompt + n_new)))
    config = with_vocabulary(config)
    contenders: list[tuple[Any, ...]] = [
        ("psann_jax", "psann_jax.bench.our_server", config, load.slots, n_prompt, n_new, sampling)
    ]
    differences: list[str] = []
    if peer_name is not None:
        peer.check_installed()
        model = peer.check_model(config.model)
        options = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        contenders += [
            (f"psannlm, {kind} attention", "psann_jax.bench.peer_sampler", config, kind, n_prompt, n_new, options)
            for kind in peer.attentions(model)
        ]
        differences = peer.model_differences(model)
    return {
        **_measure_in_turn(contenders, load),
        **dataclasses.asdict(load),
        "sampling": dataclasses.asdict(sampling),
        "differences": differences,
        "config": to_dict(config),
    }


def _measure_in_turn(contenders: Sequence[tuple[Any, ...]], load: Load) -> dict[str, Any]:
    # Without this, the first of several contenders on a GPU would take its whole memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with ExitStack() as stack:
        workers = []
        for name, module, *args in contenders:
            log(f"{name}: building")
            workers.append(stack.enter_context(Worker(name, module, *args)))
        results, loads = [], []
        for n_clients in load.clients:
            log(f"clients {n_clients}: one warm-up, then {load.repeats} turns of each contender")
            for worker in workers:
                worker.ask("run", 1, n_clients if worker is workers[0] else 1)
            server, _, busy = take_turns(workers[:1], load.repeats, n_clients)
            rivals, _, also_busy = take_turns(workers[1:], load.repeats, 1) if workers[1:] else ([], [], 0.0)
            turns = [[turn for blocks in server for turn in blocks[0]]]
            turns += [[turn for blocks in rivals for turn in blocks[i]] for i in range(len(workers) - 1)]
            figures = [_figures(worker.name, of) for worker, of in zip(workers, turns, strict=True)]
            results.append({"clients": n_clients, "contenders": figures})
            loads += [busy, also_busy]
        memory = {worker.name: worker.ask("peak_memory_mb") for worker in workers}
        return {"results": results, "peak_memory_mb": memory, **workers[0].facts, "other_load": max(loads)}


def _figures(name: str, turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "tokens_per_s": statistics.median(turn["tokens"] / turn["seconds"] for turn in turns),
        "latency_s": statistics.median(turn.get("latency_s", turn["seconds"]) for turn in turns),
    }


def report(result: dict[str, Any]) -> str:
    """Formats the result of `measure` as a table and a few lines."""
    sampling, precision = result["sampling"], result["config"]["train"]["precision"]
    chosen = f"top_p {sampling['top_p']:g}, top_k {sampling['top_k']}" if sampling["temperature"] else "greedy"
    lines = [
        f"{result['device']}; {result['n_params']:,} parameters, {precision}; {result['slots']} slots; prompts of "
        f"{result['prompt_tokens']} tokens, {result['max_new_tokens']} new ones each, {chosen}; medians of "
        f"{result['repeats']} turns",
        f"{'clients':>7}  {'':28}{'tokens/s':>10}{'ratio':>8}{'seconds per request':>21}",
    ]
    for r in result["results"]:
        for f in r["contenders"]:
            ratio = f"{r['contenders'][0]['tokens_per_s'] / f['tokens_per_s']:.2f}"
            lines.append(
                f"{r['clients']:>7}  {f['name']:<28}{f['tokens_per_s']:>10,.0f}{ratio:>8}{f['latency_s']:>21.2f}"
            )
    lines += [f"differs in psannlm: {text}" for text in result["differences"]]
    if result["other_load"] > 0.1 * usable_cores():
        lines.append(f"other processes kept {result['other_load']:.1f} cores busy")
    if len(result["results"][0]["contenders"]) > 1:
        lines.append("psannlm has one request at a time and no server; the clients of psann_jax share its cores")
    return "\n".join(lines)
