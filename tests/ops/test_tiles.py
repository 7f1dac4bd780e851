"""ops/tiles.py: sizes of tiles."""

import numpy as np
import pytest

from psann_jax.ops import kernels
from psann_jax.ops.tiles import Block, own_block, pairs_behind, tile_pairs, tiles_back, tiling, visible


@pytest.mark.parametrize(("platform", "longest"), [("cpu", 128), ("gpu", 256), ("tpu", 256)])
def test_the_devices_of_the_mesh_decide(platform, longest, monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: platform)
    assert tiling(longest) == (1, longest)
    assert tiling(longest + 1) == (2, longest // 2 + 1)
    assert tiling(1000) == (-(-1000 // longest), -(-1000 // -(-1000 // longest)))


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 6, 9, 17, 100])
def test_exactly_the_tiles_that_a_sliding_window_touches_are_met(window):
    n, T = 5, 4
    met = set(zip(*(index.tolist() for index in tile_pairs(n, tiles_back(window, T))), strict=True))
    for i, j in np.ndindex(n, n):
        assert ((i, j) in met) == bool(visible(i, j, T, own_block(None), window)[1].any())


@pytest.mark.parametrize("window", [0, 2, 3, 4, 5, 9, 17, 39])
def test_exactly_the_tiles_of_the_block_before_that_a_sliding_window_touches_are_met(window):
    n, T, length = 5, 4, 18
    met = set(zip(*(index.tolist() for index in pairs_behind(n, T, length, window)), strict=True))
    for i, j in np.ndindex(n, n):
        assert ((i, j) in met) == bool(visible(i, j, T, Block(None, length), window)[1].any())
