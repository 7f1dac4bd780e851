"""ops/tiles.py: sizes of tiles."""

import pytest

from psann_jax.ops import kernels
from psann_jax.ops.tiles import tiling


@pytest.mark.parametrize(("platform", "longest"), [("cpu", 128), ("gpu", 256), ("tpu", 256)])
def test_the_devices_of_the_mesh_decide(platform, longest, monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: platform)
    assert tiling(longest) == (1, longest)
    assert tiling(longest + 1) == (2, longest // 2 + 1)
    assert tiling(1000) == (-(-1000 // longest), -(-1000 // -(-1000 // longest)))
