"""Loss and gradients of networks with grouped heads on meshes, and their difference from one device, as JSON.

Args: names of variants with two heads of keys and values.
"""

import json
import sys

from tests.multi_device.sequence import difference, measured

MESHES = {"tensor": (2, 1, 2), "fsdp": (1, 4, 1), "all": (2, 2, 2)}


def differences(name):
    """Returns the difference of each mesh."""
    one, _ = measured(name, False, (1, 1, 1))
    return {mesh: difference(measured(name, False, sizes)[0], one) for mesh, sizes in MESHES.items()}


if __name__ == "__main__":
    print(json.dumps({name: differences(name) for name in sys.argv[1:]}))
