"""GPU-03, training throughput, and GPU-04, what rematerialisation saves and costs."""

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
# More tokens an update must not make it slower by the token: that would be memory swapped or batches not ready.
_LEAST_OF_BEST = 0.5
_MOST_MEMORY = 0.8  # of that without rematerialisation, by the compiler's account
_MOST_LOSS_DIFFERENCE = {"fp32": 1e-4, "bf16": 0.03}


def measure_throughput(config: Config, n_steps: int) -> dict[str, Any]:
    """Training tokens/s by the median step, on random tokens and all devices."""
    ours = Ours(config)
    ours.run(_WARMUP_STEPS)
    laps = ours.run(n_steps)
    step_s = statistics.median(laps)
    tokens_per_s = config.train.batch_tokens / step_s
    return {
        "batch_tokens": config.train.batch_tokens,
        "tokens_per_s": round(tokens_per_s, 1),
        "step_s": step_s,
        "fastest_tokens_per_s": round(config.train.batch_tokens / min(laps), 1),
        "mfu": ours.mfu(tokens_per_s),
        "compile_s": round(ours.facts["compile_s"], 2),
        "peak_memory_mb": round(ours.peak_memory_mb(), 1),
        "n_params": ours.facts["n_params"],
        "max_length": config.data.max_length,
        "precision": config.train.precision,
    }


def measure_throughputs(configs: list[Config], n_steps: int) -> list[dict[str, Any]]:
    """See `measure_throughput`; a config that cannot be run, for want of memory say, has the field "error" only."""
    entries = []
    for config in configs:
        try:
            entries.append(measure_throughput(config, n_steps))
        except Exception as error:
            traceback.print_exc()
            entries.append({"error": f"{type(error).__name__}: {str(error).strip()[:200]}"})
    return entries


def check_throughput(sizes: Sizes, machine: Machine) -> Findings:
    """Tokens/s of every base and batch size."""
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
        whole = [{"base": base, **entry} for entry in entries if "error" not in entry]
        found.measured["entries"] += whole
        if whole:
            _judge_rates(found, whole)
    return found


def _judge_rates(found: Findings, entries: list[dict[str, Any]]) -> None:
    """Notes what is wrong with the entries of one base."""
    # The fastest step is what other work on the machine disturbs least.
    base, rates = entries[0]["base"], [entry["fastest_tokens_per_s"] for entry in entries]
    for entry in entries:
        where = f"{base}, {entry['batch_tokens']} tokens"
        found.expect(0 < entry["tokens_per_s"] < math.inf, f"{where}: {entry['tokens_per_s']} tokens/s")
        # Above the peak: then steps were not waited for.
        found.expect(entry["mfu"] is None or 0 < entry["mfu"] < 1, f"{where}: {entry['mfu']} of the peak FLOP/s")
    found.expect(
        rates[-1] >= _LEAST_OF_BEST * max(rates),
        f"{base}: the largest batch has {rates[-1]:,.0f} tokens/s at best, another {max(rates):,.0f}",
    )


def measure_memory(config: Config) -> dict[str, Any]:
    """Memory and time of training steps on one device."""
    training = Training(config, make_mesh(ONE_DEVICE, all_devices=False)).take(_WARMUP_STEPS)
    laps = time_steps(training.start_step, _MEMORY_STEPS, ahead=False)
    return {
        "base": config.model.base,
        "d_model": config.model.d_model,
        "n_layers": config.model.n_layers,
        "grad_checkpoint": config.train.remat != "none",
        "amp": config.train.precision,
        "max_memory_mb": round(peak_memory_mb(), 1),
        "elapsed_s": round(sum(laps), 4),
        "compiler_memory_mb": round(training.memory_mb * 2**20 / 1e6, 1),
        "step_s": round(statistics.median(laps), 4),
        "steps": _MEMORY_STEPS,
        "batch_tokens": config.train.batch_tokens,
        "max_length": config.data.max_length,
        "remat": config.train.remat,
        "losses": training.losses,
    }


def check_memory(sizes: Sizes, machine: Machine) -> Findings:
    """Rematerialisation saves memory and changes no loss."""
    entries = []
    for remat in ("none", "block"):
        config = experiment(
            sizes.memory, "waveresnet", sizes.memory_tokens, precision=sizes.precision, remat=remat, lr=1e-3
        )
        entries.append(child.in_child(measure_memory, config))
    kept, again = entries
    difference = loss_difference(again["losses"], kept["losses"])
    shares = {name: again[name] / kept[name] for name in ("compiler_memory_mb", "max_memory_mb", "step_s")}
    found = Findings({"entries": entries, "with_over_without": shares, "loss_difference": difference})
    share = shares["compiler_memory_mb"]
    found.expect(share <= _MOST_MEMORY, f"remat needs {share:.2f} of the memory, by the compiler's account")
    # The peak of a process on a CPU has the compiler's own memory in it.
    found.expect(machine.platform == "cpu" or shares["max_memory_mb"] < 1, "remat does not lower the peak memory")
    most = _MOST_LOSS_DIFFERENCE[sizes.precision]
    found.expect(difference <= most, f"remat changes the losses by {difference:.2g}, more than {most}")
    return found


THROUGHPUT = Check(
    "GPU-03",
    "training throughput over bases and batch sizes",
    {"largest_batch_over_best": _LEAST_OF_BEST, "mfu_below": 1.0},
    check_throughput,
)
MEMORY = Check(
    "GPU-04",
    "memory and time with and without rematerialisation",
    {
        "compiler_memory_share": _MOST_MEMORY,
        **{f"loss_difference_{name}": most for name, most in _MOST_LOSS_DIFFERENCE.items()},
    },
    check_memory,
)
