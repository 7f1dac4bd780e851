"""Devices to compile for that are not there: TPU slices and NVIDIA H100s.

The compilers come with the extras aot-tpu and aot-gpu. The figures of the devices are those of their makers.
"""

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psann_jax.utils.errors import UserError


@dataclass(frozen=True)
class Chip:
    """A kind of device.

    Attributes:
      platform: "tpu" or "cuda", the name by which JAX lowers programs for it.
      gb_per_s: bandwidth of the memory (HBM), in 10^9 bytes per second.
      memory_gib: size of the memory.
      ghz: clock in which the TPU compiler estimates times; 0 for a GPU.
    """

    platform: str
    gb_per_s: float
    memory_gib: float
    ghz: float = 0.0


CHIPS = {
    "v5e": Chip("tpu", 819, 16, 1.5),
    "v5p": Chip("tpu", 2765, 95, 1.75),
    "v6e": Chip("tpu", 1640, 32, 1.75),
    "h100": Chip("cuda", 3352, 79),
}

# What the GPU compiler must know of an H100 SXM: from its data sheet, and the version of cuDNN.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclass(frozen=True)
class Topology:
    """A number of connected devices, from `parse_topology`.

    Attributes:
      name: as the user gave it, "v5e:2x4".
      kind: a key of `CHIPS`.
      layout: sizes of a TPU slice, "2x4"; or a number of GPUs, "8"; "1" is one device of any kind.
      slices: number of such slices or nodes, which a slow network joins.
    """

    name: str
    kind: str
    layout: str
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """The kind of device."""
        return CHIPS[self.kind]

    def devices(self) -> Sequence[Any]:
        """Returns the devices, for a mesh to compile for; they cannot hold arrays.

        Raises:
          UserError: the compiler's package is missing, or there is no such slice.
        """
        # Imported late: `prepare` sets the environment first.
        import jax
        from jax.experimental import topologies

        single = self.layout == "1" and self.slices == 1
        arguments: dict[str, Any]
        if self.chip.platform == "tpu":
            _need("libtpu", "aot-tpu")
            # The compiler knows no host with a single TPU chip.
            smallest = "2x2x1" if self.kind == "v5p" else "2x2"
            layout = {"topology_name": f"{self.kind}:{smallest if single else self.layout}"}
            arguments = {"platform": "tpu", **layout, "num_slices": self.slices}
        else:
            _need("jax_cuda13_plugin", "aot-gpu")
            layout = {"topology_name": "", "topology": f"1x{self.slices}x{self.layout}"}
            arguments = {"platform": "cuda", "target_config": _H100, **layout}
        try:
            found: Sequence[Any] = topologies.get_topology_desc(**arguments).devices
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"--topology: {self.name}: {str(error).splitlines()[0]}") from None
        return found[:1] if single else found


def parse_topology(name: str) -> Topology:
    """Reads "v5e:2x4", "v5p:2x2x2", "h100:8", several such as "2xv5e:2x4", or a single device such as "v6e:1".

    Raises:
      ValueError: the name has another form.
    """
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z]\w+):([1-9]\d*(?:x[1-9]\d*)*)", name.lower())
    slices = int(match[1] or 1) if match else 1
    if match is None or match[2] not in CHIPS or not _fits(CHIPS[match[2]], match[3], slices):
        raise ValueError(f"{name!r} is not a topology; examples: v5e:2x4, v5p:2x2x2, v6e:1, h100:8, 2xv5e:2x4")
    return Topology(name.lower(), match[2], match[3], slices)


def _fits(chip: Chip, layout: str, slices: int) -> bool:
    return (layout == "1" and slices == 1) or (chip.platform == "tpu") == ("x" in layout)


def prepare() -> None:
    """Sets what compilers of absent devices need in the environment; call it before JAX is used.

    The process computes on the CPU, does not ask a cloud for its TPU, and shares the TPU compiler with other processes.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _need(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"--topology: needs the package of another compiler; pip install 'psann_jax[{extra}]'")
