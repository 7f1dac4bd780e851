"""What kinds of NVIDIA GPUs can do, by the name that their driver reports."""

import re
from importlib.util import find_spec

# Names of boards, not all of them: an unknown one runs the implementations that need no special hardware.
_BOARDS = {
    "blackwell": r"G?B[123]00",
    "hopper": r"G?H100|G?H200|H800|H20",
    "ampere": r"A2|A10G?|A16|A30|A40|A100|A800|L4|L20|L40S?|RTX A\d{4}|RTX [345]0\d0|RTX \d{4} Ada|RTX PRO \d{4}|GB10",
}

OLD_GPU = "needs an NVIDIA GPU of the generation of Ampere or newer"


def architecture(device_kind: str) -> str:
    """Returns the architecture of a GPU.

    Args:
      device_kind: for example "NVIDIA H100 80GB HBM3".

    Returns:
      "blackwell" or "hopper" for those of data centres; "ampere" for all others since Ampere, consumer boards of
      Blackwell among them; "" for older and unknown ones.
    """
    if "NVIDIA" not in device_kind:
        return ""
    for name, boards in _BOARDS.items():
        if re.search(rf"\b({boards})\b", device_kind):
            return name
    return ""


def no_triton(device_kind: str) -> str:
    """Returns why kernels for Triton cannot run on a GPU with this JAX; "" if they can."""
    if not architecture(device_kind):
        return OLD_GPU
    if find_spec("jax.experimental.pallas.triton") is None:
        return "needs Pallas for Triton, which this version of JAX does not have"
    return ""
