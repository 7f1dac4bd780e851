"""The device mesh over all devices, or over the first ones."""

import jax
import pytest

from psann_jax.config import ConfigError, MeshConfig
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh


def test_the_mesh_covers_all_devices_or_the_error_says_why_not():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    found = r"but there is 1 device \(cpu\)"
    for config, message in {
        MeshConfig(data=8): rf"^mesh\.data: is 8, {found}; it must divide that number$",
        MeshConfig(fsdp=3): rf"^mesh\.fsdp: is 3, {found}; it must divide that number$",
        MeshConfig(fsdp=2, tensor=3): rf"^mesh: is fsdp 2 x tensor 3, {found}; it must divide that number$",
    }.items():
        with pytest.raises(ConfigError, match=message):
            make_mesh(config)


def test_the_number_of_devices_is_in_the_message(monkeypatch):
    eight = 8 * jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: eight)
    with pytest.raises(ConfigError, match=r"^mesh\.data: is 3, but there are 8 devices \(cpu\); it must divide"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(ConfigError, match=r"^mesh: is data 2 x fsdp 2 x tensor 1, but there are 8 devices \(cpu\)$"):
        make_mesh(MeshConfig(data=2, fsdp=2))


def test_the_mesh_over_the_first_devices_needs_that_many():
    assert dict(make_mesh(ONE_DEVICE, all_devices=False).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ConfigError, match=r"^mesh: is data 1 x fsdp 2 x tensor 3, but there is 1 device \(cpu\)$"):
        make_mesh(MeshConfig(1, 2, 3), all_devices=False)
    with pytest.raises(ConfigError, match=r"^mesh\.data: is 0, must be positive, or -1"):
        make_mesh(MeshConfig(0, 1, 1), all_devices=False)
