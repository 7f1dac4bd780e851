"""GPU-03, training throughput; GPU-04, memory and time with and without rematerialisation."""

import math
import statistics
import traceback
from typing import Any

from psann_jax.bench.ours import Ours
from psann_jax.bench.timing import time_steps
from psann_jax.config import Config
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.selftest import child
from psann_jax.selftest.check import Check, Findings, Machine
from psann_jax.selftest.sizes import Sizes, experiment
from psann_jax.selftest.training import Training, loss_difference
from psann_jax.train.hardware import peak_memory_mb
from psann_jax.utils.errors import UserError

_WARMUP_STEPS = 2
_MEMORY_STEPS = 5
# Rate of the largest batch relative to the best. It is lower if memory is swapped or batches are not ready in time.
_MIN_OF_BEST = 0.5
_MAX_MEMORY = 0.8  # relative to no rematerialisation, as estimated by the compiler
_MAX_LOSS_DIFFERENCE = {"fp32": 1e-4, "bf16": 0.03}


def measure_throughput(config: Config, n_steps: int) -> dict[str, Any]:
    """Measures training tokens/s by the median step, on random tokens and all devices."""
    ours = Ours(config)
    ours.run(_WARMUP_STEPS)
    step_times = ours.run(n_steps)
    step_s = statistics.median(step_times)
    tokens_per_s = config.train.batch_tokens / step_s
    return {
        "batch_tokens": config.train.batch_tokens,
        "tokens_per_s": round(tokens_per_s, 1),
        "step_s": step_s,
        "fastest_tokens_per_s": round(config.train.batch_tokens / min(step_times), 1),
        "mfu": ours.mfu(tokens_per_s),
        "compile_s": round(ours.facts["compile_s"], 2),
        "peak_memory_mb": round(ours.peak_memory_mb(), 1),
        "n_params": ours.facts["n_params"],
        "max_length": config.data.max_length,
        "precision": config.train.precision,
    }


def measure_throughputs(configs: list[Config], n_steps: int) -> list[dict[str, Any]]:
    """Calls `measure_throughput` for each config; one that fails, for example out of memory, gives {"error": ...}."""
    entries = []
    for config in configs:
        try:
            entries.append(measure_throughput(config, n_steps))
        except Exception as error:
            traceback.print_exc()
            entries.append({"error": f"{type(error).__name__}: {str(error).strip()[:200]}"})
    return entries


def check_throughput(sizes: Sizes, machine: Machine) -> Findings:
    """Measures and checks the tokens/s of every base and batch size."""
    del machine
    found = Findings({"entries": []})
    for base in sizes.bases:
        configs = [experiment(sizes.speed, base, n, precision=sizes.precision) for n in sizes.speed_tokens]
        try:
            entries = child.in_child(measure_throughputs, configs, sizes.speed_steps)
        except (child.ChildError, UserError) as error:
            found.expect(False, f"{base}: {error}")
            continue
        for tokens, entry in zip(sizes.speed_tokens, entries, strict=True):
            found.expect("error" not in entry, f"{base}, {tokens} tokens: {entry.get('error')}")
        complete = [{"base": base, **entry} for entry in entries if "error" not in entry]
        found.measured["entries"] += complete
        if complete:
            _check_rates(found, complete)
    return found


def _check_rates(found: Findings, entries: list[dict[str, Any]]) -> None:
    """Records failures in the entries of one base."""
    # The fastest step is the least disturbed by other work on the machine.
    base, rates = entries[0]["base"], [entry["fastest_tokens_per_s"] for entry in entries]
    for entry in entries:
        where = f"{base}, {entry['batch_tokens']} tokens"
        found.expect(0 < entry["tokens_per_s"] < math.inf, f"{where}: {entry['tokens_per_s']} tokens/s")
        # A rate above the peak means that the timer did not wait for the steps.
        found.expect(entry["mfu"] is None or 0 < entry["mfu"] < 1, f"{where}: MFU is {entry['mfu']}")
    found.expect(
        rates[-1] >= _MIN_OF_BEST * max(rates),
        f"{base}: the largest batch reaches {rates[-1]:,.0f} tokens/s, a smaller one {max(rates):,.0f}",
    )


def measure_memory(config: Config) -> dict[str, Any]:
    """Measures memory and time of training steps on one device."""
    training = Training(config, make_mesh(ONE_DEVICE, all_devices=False)).take(_WARMUP_STEPS)
    step_times = time_steps(training.start_step, _MEMORY_STEPS, ahead=False)
    return {
        "base": config.model.base,
        "d_model": config.model.d_model,
        "n_layers": config.model.n_layers,
        "grad_checkpoint": config.train.remat != "none",
        "amp": config.train.precision,
        "max_memory_mb": round(peak_memory_mb(), 1),
        "elapsed_s": round(sum(step_times), 4),
        "compiler_memory_mb": round(training.memory_mb, 1),
        "step_s": round(statistics.median(step_times), 4),
        "steps": _MEMORY_STEPS,
        "batch_tokens": config.train.batch_tokens,
        "max_length": config.data.max_length,
        "remat": config.train.remat,
        "losses": training.losses,
    }


def check_memory(sizes: Sizes, machine: Machine) -> Findings:
    """Checks that rematerialisation saves memory and changes no loss."""
    entries = []
    for remat in ("none", "block"):
        config = experiment(
            sizes.memory, "waveresnet", sizes.memory_tokens, precision=sizes.precision, remat=remat, lr=1e-3
        )
        entries.append(child.in_child(measure_memory, config))
    without, with_remat = entries
    difference = loss_difference(with_remat["losses"], without["losses"])
    ratios = {name: with_remat[name] / without[name] for name in ("compiler_memory_mb", "max_memory_mb", "step_s")}
    found = Findings({"entries": entries, "with_over_without": ratios, "loss_difference": difference})
    ratio = ratios["compiler_memory_mb"]
    found.expect(
        ratio <= _MAX_MEMORY, f"remat needs {ratio:.2f} times the memory by the compiler's estimate, not {_MAX_MEMORY}"
    )
    # On a CPU, the peak memory of the process includes the compiler's own.
    found.expect(machine.platform == "cpu" or ratios["max_memory_mb"] < 1, "remat does not lower the peak memory")
    limit = _MAX_LOSS_DIFFERENCE[sizes.precision]
    found.expect(difference <= limit, f"remat changes the losses by {difference:.2g}, more than {limit}")
    return found


THROUGHPUT = Check(
    "GPU-03",
    "training throughput by base and batch size",
    {"largest_batch_over_best": _MIN_OF_BEST, "mfu_below": 1.0},
    check_throughput,
)
MEMORY = Check(
    "GPU-04",
    "memory and time with and without rematerialisation",
    {
        "compiler_memory_share": _MAX_MEMORY,
        **{f"loss_difference_{name}": limit for name, limit in _MAX_LOSS_DIFFERENCE.items()},
    },
    check_memory,
)
