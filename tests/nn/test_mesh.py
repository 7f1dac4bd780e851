"""The device mesh over all devices, or over the first ones."""

import pytest

from psann_jax.config import ConfigError, MeshConfig
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh


def test_the_mesh_covers_all_devices_or_the_error_says_why_not():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ConfigError, match=r"^mesh\.data: is 2, which does not divide the 1 devices left for it$"):
        make_mesh(MeshConfig(data=2))
    with pytest.raises(ConfigError, match=r"^mesh\.fsdp: is 3, which does not divide"):
        make_mesh(MeshConfig(fsdp=3))


def test_the_mesh_over_the_first_devices_needs_that_many():
    assert dict(make_mesh(ONE_DEVICE, all_devices=False).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ConfigError, match=r"^mesh: is data 1 x fsdp 2 x tensor 3, but there are 1 devices$"):
        make_mesh(MeshConfig(1, 2, 3), all_devices=False)
    with pytest.raises(ConfigError, match=r"^mesh\.data: is 0, must be positive, or -1"):
        make_mesh(MeshConfig(0, 1, 1), all_devices=False)
