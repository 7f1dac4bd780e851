"""Estimates compute, memory and communication of a training step on clusters, by counting.

`docs/scaling.md` has the formulas and their limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from psann_jax.bench.random_task import random_task
from psann_jax.config import Config, require, text_data
from psann_jax.models.flops import flops_per_token, has_backward_pass
from psann_jax.models.network import Network
from psann_jax.nn.partition import ParamInfo
from psann_jax.train.step import abstract_state

_MASTER = 4  # bytes of a weight or a gradient
_COMPUTE = 2  # bytes of an activation


@dataclass(frozen=True)
class Cluster:
    """Accelerators and their links.

    Attributes:
      flops: FLOP/s that matrix products reach on one accelerator.
      node: accelerators joined by fast links.
      fast: bytes/s from an accelerator to others of its node, one direction.
      slow: bytes/s from an accelerator to other nodes, one direction.
    """

    flops: float
    node: int
    fast: float
    slow: float


@dataclass(frozen=True)
class Estimate:
    """Estimate for one update.

    Attributes:
      devices: number of accelerators.
      compute_s: seconds in matrix products.
      fsdp_s: seconds for communication along the fsdp axis.
      tensor_s: seconds for communication along the tensor axis.
      data_s: seconds for the sum of gradients along the data axis.
      state_mb: memory per accelerator for weights, gradients and the state between updates, in 2^20 bytes.
      efficiency: fraction of the time in matrix products.
    """

    devices: int
    compute_s: float
    fsdp_s: float
    tensor_s: float
    data_s: float
    state_mb: float
    efficiency: float


def estimate(config: Config, cluster: Cluster, devices: Sequence[int]) -> list[Estimate]:
    """Estimates an update of a language model on each number of devices.

    Args:
      config: the experiment; the sizes of the axes fsdp and tensor are those of its mesh.
      cluster: the accelerators and their links.
      devices: numbers of accelerators; those that fsdp and tensor do not use form the data axis.

    Raises:
      ConfigError: not a language model, mesh.context is not 1, or fsdp and tensor do not divide a number of devices.
    """
    text_data(config)  # raises for a model of puzzles
    task = random_task(config)
    network, config = task.network, task.config
    model, mesh = config.model, config.mesh
    require(
        mesh.context == 1,
        "mesh.context",
        "is not part of the estimate; leave it at 1, and count its traffic with psann-jax bench compile",
    )
    fsdp, tensor = max(mesh.fsdp, 1), max(mesh.tensor, 1)
    flops = config.train.batch_tokens * flops_per_token(config, network)
    state = jax.tree.leaves(abstract_state(network, config.train))
    n_summed, passes_through = _n_gradients(network), 2 if has_backward_pass(network) else 1
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in state) + n_summed * _MASTER
    gradients = 2 if config.train.sam_rho else 1
    passes = gradients * config.train.grad_accum
    results = []
    for n in devices:
        require(n % (fsdp * tensor) == 0, "--devices", f"is {n}, which fsdp {fsdp} x tensor {tensor} does not divide")
        data = n // (fsdp * tensor)
        # Weights are gathered for the forward and the backward pass, gradients are scattered.
        moved = (passes_through * network.n_params + n_summed) / tensor
        fsdp_bytes = passes * (fsdp - 1) / fsdp * moved * _MASTER
        # Two sums of activations per block in each direction, over the tokens of a device.
        tokens, sums = gradients * config.train.batch_tokens / (data * fsdp), 2 * passes_through * model.n_layers
        tensor_bytes = sums * 2 * (tensor - 1) / tensor * tokens * model.d_model * _COMPUTE
        data_bytes = gradients * 2 * (data - 1) / data * n_summed / (tensor * fsdp) * _MASTER
        # The innermost axis is tensor, then fsdp.
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
                state_mb=state_bytes / (fsdp * tensor) / 1e6,
                efficiency=compute_s / (compute_s + sum(times.values())),
            )
        )
    return results


def _n_gradients(network: Network) -> int:
    """Counts the gradients that are summed over devices: those of trained weights.

    Those of adapters (train.lora_rank) follow on each device from the gradients of their matrices.
    """

    def size(array: Any, info: ParamInfo) -> int:
        is_summed = info.trainable if network.lora is None else info.kind == "matrix"
        return int(array.size) if is_summed else 0

    return sum(jax.tree.leaves(jax.tree.map(size, network.abstract, network.infos)))


def _link(cluster: Cluster, span: int) -> float:
    """Bytes/s within a group of neighbouring devices; a group larger than a node uses the network."""
    return cluster.fast if span <= cluster.node else cluster.slow


def report(config: Config, estimates: Sequence[Estimate]) -> str:
    """Formats the estimates as a table."""
    n_params = random_task(config).network.n_params
    lines = [
        f"{n_params:,} parameters, {config.train.batch_tokens:,} tokens per update, "
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
