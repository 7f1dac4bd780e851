"""How a training step would scale: its compute, memory and communication, counted, for clusters that are not here.

`docs/scaling.md` has the formulas and what they leave out.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from psann_jax.bench.arguments import CONFIG, JSON
from psann_jax.bench.random_text import with_vocabulary
from psann_jax.bench.results import check_writable, write_result
from psann_jax.config import Config, DataConfig, require
from psann_jax.config.io import parse
from psann_jax.tasks.lm import make_network
from psann_jax.train.hardware import training_flops_per_token

_DEVICES = flags.DEFINE_multi_integer("devices", [8, 64, 512], "Numbers of accelerators; can be given several times.")
_PEAK = flags.DEFINE_float("peak_tflops", 989.4, "Of an accelerator, in 16-bit matrix products; default an H100 SXM.")
_UTILISATION = flags.DEFINE_float("utilisation", 0.4, "Share of the peak that the matrix products reach.")
_NODE = flags.DEFINE_integer("node", 8, "Accelerators that the fast links join.", lower_bound=1)
_FAST = flags.DEFINE_float("node_gb_s", 450.0, "GB/s of an accelerator to the others of its node, one direction.")
_SLOW = flags.DEFINE_float("network_gb_s", 50.0, "GB/s of an accelerator to other nodes, one direction.")

_MASTER = 4  # bytes of a weight, a gradient or a moment
_COMPUTE = 2  # bytes of an activation


@dataclass(frozen=True)
class Cluster:
    """Accelerators and their links; FLOP/s and bytes/s of one accelerator."""

    flops: float
    node: int
    fast: float
    slow: float


@dataclass(frozen=True)
class Estimate:
    """One update on so many accelerators: seconds, MB of one of them, and the share of time in matrix products."""

    devices: int
    compute_s: float
    fsdp_s: float
    tensor_s: float
    data_s: float
    state_mb: float
    efficiency: float


def main() -> None:
    """Prints the table of the flags' clusters."""
    if JSON.value:
        check_writable(Path(JSON.value))
    cluster = Cluster(_PEAK.value * 1e12 * _UTILISATION.value, _NODE.value, _FAST.value * 1e9, _SLOW.value * 1e9)
    config = parse(CONFIG.value)
    require(isinstance(config.data, DataConfig), "model.base", f"is {config.model.base}; the estimate is for text")
    estimates = estimate(config, cluster, _DEVICES.value)
    print(report(config, estimates))
    if JSON.value:
        write_result(Path(JSON.value), {"estimates": [dataclasses.asdict(e) for e in estimates]})


def estimate(config: Config, cluster: Cluster, devices: Sequence[int]) -> list[Estimate]:
    """The estimates; fsdp and tensor as in the config, all other devices along data.

    Raises:
      ConfigError: fsdp and tensor do not divide a number of devices.
    """
    config = with_vocabulary(config)
    network = make_network(config, config.model.vocab_size)
    model, mesh = config.model, config.mesh
    fsdp, tensor = max(mesh.fsdp, 1), max(mesh.tensor, 1)
    embedding = network.abstract["embed"].size
    flops = config.train.batch_tokens * training_flops_per_token(
        network.n_params - embedding, model.n_layers, model.d_model, config.data.max_length
    )
    passes = config.train.grad_accum
    results = []
    for n in devices:
        require(n % (fsdp * tensor) == 0, "--devices", f"is {n}, which fsdp {fsdp} x tensor {tensor} does not divide")
        data = n // (fsdp * tensor)
        held = network.n_params / tensor  # weights that one fsdp group shares
        # Gathered before each pass forwards and backwards, and the gradients scattered: three times the weights.
        fsdp_bytes = passes * 3 * (fsdp - 1) / fsdp * held * _MASTER
        # Two sums of activations a block in each direction, over the tokens of a device.
        tokens = config.train.batch_tokens / (data * fsdp)
        tensor_bytes = 4 * model.n_layers * 2 * (tensor - 1) / tensor * tokens * model.d_model * _COMPUTE
        data_bytes = 2 * (data - 1) / data * held / fsdp * _MASTER
        # The axes are laid out with tensor innermost, then fsdp.
        times = {
            "tensor_s": tensor_bytes / _link(cluster, tensor),
            "fsdp_s": fsdp_bytes / _link(cluster, fsdp * tensor),
            "data_s": data_bytes / _link(cluster, n if data > 1 else 1),
        }
        compute_s = flops / (n * cluster.flops)
        results.append(
            Estimate(
                devices=n,
                compute_s=compute_s,
                **times,
                # Weights, gradients and AdamW's two moments.
                state_mb=4 * _MASTER * held / fsdp / 2**20,
                efficiency=compute_s / (compute_s + sum(times.values())),
            )
        )
    return results


def _link(cluster: Cluster, span: int) -> float:
    """Bytes/s of a group of neighbours of that size: the network's, once it leaves a node."""
    return cluster.fast if span <= cluster.node else cluster.slow


def report(config: Config, estimates: Sequence[Estimate]) -> str:
    """The estimates as a table."""
    config = with_vocabulary(config)
    network = make_network(config, config.model.vocab_size)
    lines = [
        f"{network.n_params:,} parameters, {config.train.batch_tokens:,} tokens an update, "
        f"fsdp {max(config.mesh.fsdp, 1)}, tensor {max(config.mesh.tensor, 1)}, the rest data",
        f"{'devices':>8}{'compute ms':>13}{'data ms':>11}{'fsdp ms':>11}{'tensor ms':>11}{'state MB':>11}"
        f"{'tokens/s':>14}{'efficiency':>12}",
    ]
    for e in estimates:
        seconds = e.compute_s / e.efficiency
        lines.append(
            f"{e.devices:>8}{1e3 * e.compute_s:>13.2f}{1e3 * e.data_s:>11.2f}{1e3 * e.fsdp_s:>11.2f}"
            f"{1e3 * e.tensor_s:>11.2f}{e.state_mb:>11,.0f}{config.train.batch_tokens / seconds:>14,.0f}"
            f"{e.efficiency:>12.0%}"
        )
    return "\n".join(lines)
