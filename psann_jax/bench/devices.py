"""Tokens/s of data parallelism over 1, 2, 4, ... simulated CPU devices, with the same batch.

All devices share the machine's cores. So this measures what the division costs: smaller matrices per device, the sum of
gradients, and synchronisation. It cannot show that n devices compute n times as fast. If a batch has enough work, the
efficiency of a division without cost is 1.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from psann_jax.bench.layout import simulate_devices
from psann_jax.bench.ours import Ours
from psann_jax.bench.random_task import with_vocabulary
from psann_jax.bench.turns import log, take_turns
from psann_jax.bench.workers import Worker
from psann_jax.config import Config, MeshConfig
from psann_jax.config.io import to_dict

_WARMUP_STEPS = 3


def measure(config: Config, counts: Sequence[int], *, n_steps: int) -> dict[str, Any]:
    """Measures a config on each number of devices, in processes that take turns.

    Args:
      config: the experiment; random data replace its own, and data parallelism replaces its mesh.
      counts: numbers of devices; efficiencies are relative to the first.
      n_steps: steps for each number, after the warm-up.

    Returns:
      device, n_steps, config, other_load (cores that other processes kept busy) and runs. A run has devices,
      tokens_per_s, step_s (median seconds), cpu_s (processor seconds per step, over all cores), compile_s,
      peak_memory_mb and efficiency.

    Raises:
      ConfigError: a number of devices does not divide the batch.
    """
    config = with_vocabulary(config)
    with ExitStack() as stack:
        workers = []
        for n in counts:
            log(f"{n} devices: building, then {_WARMUP_STEPS} warm-up steps")
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
    """Formats the result of `measure` as a table."""
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
    """Makes the contender, in its worker's process, with as many devices as its mesh has."""
    simulate_devices(config.mesh)
    return Ours(config)
