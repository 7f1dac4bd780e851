"""Tokens/s of data parallelism over 1, 2, 4, ... devices that the CPU pretends to have, with the same batch.

All of them share the machine's cores. So what this shows is what the division costs: the smaller matrices of a device,
the sum of gradients, the waits for one another. That n devices compute n times as fast it cannot show. With enough
work in a batch, the efficiency of a division that costs nothing is 1.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from absl import flags

from psann_jax.bench.arguments import CONFIG, JSON, STEPS
from psann_jax.bench.layout import pretend_devices
from psann_jax.bench.ours import Ours
from psann_jax.bench.random_text import with_vocabulary
from psann_jax.bench.results import check_writable, write_result
from psann_jax.bench.turns import say, take_turns
from psann_jax.bench.workers import Worker
from psann_jax.config import Config, MeshConfig
from psann_jax.config.io import parse, to_dict

_COUNTS = flags.DEFINE_multi_integer("count", [1, 2, 4, 8], "Numbers of devices; can be given several times.")

_WARMUP_STEPS = 3


def main() -> None:
    """Measures what the flags ask for, prints a table and writes the JSON file."""
    if JSON.value:
        check_writable(Path(JSON.value))
    result = measure(parse(CONFIG.value), _COUNTS.value, n_steps=STEPS.value)
    print(report(result))
    if JSON.value:
        write_result(Path(JSON.value), result)


def measure(config: Config, counts: Sequence[int], *, n_steps: int) -> dict[str, Any]:
    """Measures a config on so many devices each, in processes that take turns.

    Args:
      config: the experiment; its text is replaced by random tokens, its mesh by data parallelism.
      counts: numbers of devices; efficiencies are relative to the first.
      n_steps: on each, after the warm-up.

    Returns:
      device, n_steps, config, other_load (cores that other processes kept busy) and runs, of each: devices,
      tokens_per_s, step_s (median), cpu_s (processor seconds of a step, over all cores), compile_s, peak_memory_mb and
      efficiency.

    Raises:
      ConfigError: the batch cannot be divided over so many devices.
    """
    config = with_vocabulary(config)
    with ExitStack() as stack:
        workers = []
        for n in counts:
            say(f"{n} devices: building, and {_WARMUP_STEPS} steps of warm-up")
            divided = dataclasses.replace(config, mesh=MeshConfig(data=n))
            workers.append(stack.enter_context(Worker(f"{n} devices", __name__, divided)))
            workers[-1].ask("run", _WARMUP_STEPS)
        rounds, cpu_seconds, other_load = take_turns(workers, n_steps)
        runs = []
        for i, (n, worker) in enumerate(zip(counts, workers, strict=True)):
            step_s = statistics.median(seconds for blocks in rounds for seconds in blocks[i])
            figures = {"devices": n, "tokens_per_s": config.train.batch_tokens / step_s, "step_s": step_s}
            figures |= {"cpu_s": cpu_seconds[i] / n_steps, "compile_s": worker.facts["compile_s"]}
            runs.append({**figures, "peak_memory_mb": worker.ask("peak_memory_mb")})
        device = workers[0].facts["device"]
    for run in runs:
        run["efficiency"] = run["tokens_per_s"] / runs[0]["tokens_per_s"]
    return {"device": device, "n_steps": n_steps, "config": to_dict(config), "other_load": other_load, "runs": runs}


def report(result: dict[str, Any]) -> str:
    """The result of `measure` as a table."""
    train, length = result["config"]["train"], result["config"]["data"]["max_length"]
    lines = [
        f"{result['device']}; batches of {train['batch_tokens'] // length} x {length} tokens, {train['precision']}; "
        f"{result['n_steps']} steps each, in turn; other processes kept {result['other_load']:.1f} cores busy",
        f"{'devices':>8}{'tokens/s':>12}{'efficiency':>12}{'step ms':>10}{'CPU ms':>10}{'compile s':>11}{'peak MB':>9}",
    ]
    for run in result["runs"]:
        lines.append(
            f"{run['devices']:>8}{run['tokens_per_s']:>12,.0f}{run['efficiency']:>12.0%}{1000 * run['step_s']:>10,.1f}"
            f"{1000 * run['cpu_s']:>10,.0f}{run['compile_s']:>11.1f}{run['peak_memory_mb']:>9,.0f}"
        )
    return "\n".join(lines)


def make(config: Config) -> Ours:
    """The contender, in the process of its worker, with as many devices as its mesh has."""
    pretend_devices(config)
    return Ours(config)
