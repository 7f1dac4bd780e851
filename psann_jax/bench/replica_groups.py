"""The groups of devices that a collective joins, from the text of its attributes in XLA's optimised HLO."""

import re

import numpy as np

_LISTED = re.compile(r"replica_groups=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{\d+,\d+\}(?:,\{\d+,\d+\})*)\}")


def device_groups(attributes: str) -> list[list[int]] | None:
    """Returns the device numbers of every group.

    XLA writes groups as a list, as a reshaped and transposed range, or as axes of a mesh.

    Args:
      attributes: the text of an instruction after its operands.

    Returns:
      The groups; None if they are all devices, or written in a form that is not known.
    """
    listed = _LISTED.search(attributes) or _PAIRS.search(attributes)
    if listed:
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    iota = _IOTA.search(attributes)
    if iota:
        groups: list[list[int]] = _range(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2])).tolist()
        return groups
    mesh = _MESH.search(attributes)
    if mesh:
        return _along_axes(mesh[1], _range(mesh[2], mesh[3]) if mesh[2] else None, mesh[4])
    return None


def crosses(groups: list[list[int]] | None, slice_size: int) -> bool:
    """Returns whether a group joins devices of several slices of `slice_size` successive devices."""
    return groups is None or any(len({device // slice_size for device in group}) > 1 for group in groups)


def _along_axes(mesh: str, devices: np.ndarray | None, axes: str) -> list[list[int]] | None:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    joined = re.findall(r"'([^']+)'", axes)
    if re.sub(r"'[^']+'|[,\s]", "", axes) or not set(joined) <= sizes.keys():
        return None  # a part of an axis
    devices = np.arange(np.prod(list(sizes.values()))) if devices is None else devices
    names = list(sizes)
    order = [names.index(name) for name in names if name not in joined] + [names.index(name) for name in joined]
    grid = devices.reshape(list(sizes.values())).transpose(order)
    groups: list[list[int]] = grid.reshape(-1, int(np.prod([sizes[name] for name in joined]))).tolist()
    return groups


def _range(dims: str, order: str | None) -> np.ndarray:
    shape = _numbers(dims)
    grid = np.arange(np.prod(shape)).reshape(shape)
    return (grid.transpose(_numbers(order)) if order else grid).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]
