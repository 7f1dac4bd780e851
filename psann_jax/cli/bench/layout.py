"""Shows how a run is divided over its mesh: psann-jax bench layout --config=FILE [--config.mesh.fsdp=4 ...]."""

import argparse
from collections.abc import Sequence

from psann_jax.cli.flags import ConfigParser, read_config


def main(argv: Sequence[str]) -> None:
    """Prints tables of arrays, memory and collectives."""
    config = read_config(_parse(argv))
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.bench.layout import describe_layout, simulate_devices

    simulate_devices(config.mesh)
    print(describe_layout(config))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser(
        "bench layout",
        "Compiles the training step, without running it, and shows how arrays are split over the mesh, the memory of a "
        "device and the collectives. A mesh of any size works on a CPU.",
    )
    return parser.parse_strictly(argv)
