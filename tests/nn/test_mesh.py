"""The device mesh over all devices, or over the first ones."""

from dataclasses import dataclass

import jax
import pytest

from psann_jax.config import ConfigError, MeshConfig
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh

ONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}


def test_the_mesh_covers_all_devices_or_the_error_says_why_not():
    assert dict(make_mesh(MeshConfig()).shape) == ONE
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
    with pytest.raises(ConfigError, match=r"^mesh: is data 2 x fsdp 2 x context 1 x tensor 1, but there are 8 "):
        make_mesh(MeshConfig(data=2, fsdp=2))


def test_the_mesh_over_the_first_devices_needs_that_many():
    assert dict(make_mesh(ONE_DEVICE, all_devices=False).shape) == ONE
    with pytest.raises(ConfigError, match=r"^mesh: is data 1 x fsdp 2 x context 1 x tensor 3, but there is 1 device"):
        make_mesh(MeshConfig(1, 2, 3), all_devices=False)
    with pytest.raises(ConfigError, match=r"^mesh\.data: is 0, must be positive, or -1"):
        make_mesh(MeshConfig(0, 1, 1), all_devices=False)


# --- slices ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """What the mesh asks of a device."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "some GPU"


def processes(mesh):
    """The process of every device, in the shape of the mesh."""
    return [[[device.process_index for device in row] for row in group] for group in mesh.devices[:, :, 0].tolist()]


@pytest.mark.parametrize("count", [0, 2])
def test_slices_are_outermost_along_data_however_their_devices_are_listed(count):
    devices = [Device(i, i % 4, slice_index=i % 2) for i in range(16)]
    mesh = make_mesh(MeshConfig(data=4, fsdp=2, tensor=2, slices=count), devices=devices)
    assert [{device.slice_index for device in group.flat} for group in mesh.devices] == [{0}, {0}, {1}, {1}]


def test_devices_that_name_no_slices_are_grouped_by_process():
    devices = [Device(i, i % 4) for i in range(16)]
    mesh = make_mesh(MeshConfig(data=2, fsdp=8, slices=2), devices=devices)
    assert [{device.process_index for device in group.flat} for group in mesh.devices] == [{0, 1}, {2, 3}]
    one = make_mesh(MeshConfig(data=2, fsdp=8), devices=devices)
    assert processes(one)[0] == [[0], [1], [2], [3], [0], [1], [2], [3]]


@pytest.mark.parametrize(
    ("config", "named", "message"),
    [
        (MeshConfig(data=1, fsdp=8), True, r"^mesh\.data: is 1, which the 2 slices do not divide"),
        (MeshConfig(data=8, slices=4), True, r"^mesh\.slices: is 4, but the devices are 2 slices$"),
        (MeshConfig(data=8, slices=3), False, r"^mesh\.slices: is 3, which does not divide the 8 devices$"),
        (MeshConfig(slices=-1), False, r"^mesh\.slices: is -1, must be at least 0"),
    ],
)
def test_slices_that_do_not_fit_are_refused(config, named, message):
    devices = [Device(i, i // 4, slice_index=i // 4 if named else 0) for i in range(8)]
    with pytest.raises(ConfigError, match=message):
        make_mesh(config, devices=devices)
