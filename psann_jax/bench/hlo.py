"""Counts what a compiled program does, from its text: kernels, bytes of device memory, matrix FLOPs and collectives.

The text is XLA's optimised HLO. Bodies of loops count as often as they run, where XLA knows how often.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from psann_jax.bench.replica_groups import crosses, device_groups

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d+(?:e\d+m\d+\w*)?|pred)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')

COLLECTIVES = frozenset(
    {"all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "ragged-all-to-all"}
)
# Instructions that launch nothing.
_FREE = frozenset(
    {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id"}
)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: %name = type opcode(operands), attributes."""

    name: str
    type: str
    opcode: str
    tail: str  # from the opcode on

    def operands(self) -> list[str]:
        """Names of the instructions whose results it takes."""
        start, depth = self.tail.index("("), 0
        for i in range(start, len(self.tail)):
            depth += (self.tail[i] == "(") - (self.tail[i] == ")")
            if depth == 0:
                return _NAME.findall(self.tail[start : i + 1])
        return []

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute names, such as `body`."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.tail)
        return found[1] if found else None

    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.tail)
        if listed:
            return _NAME.findall(listed[1]) or re.findall(r"[\w.\-]+", listed[1])
        return [name for name in (self.called("true_computation"), self.called("false_computation")) if name]


@dataclass
class Counts:
    """What a program does when it runs once, on one device.

    Attributes:
      kernels: operations that are launched; a loop's counted as often as it runs.
      bytes: of device memory that they read and write; a slice counts as its own size, TPU's fast memory not at all,
        a kernel written by hand as its operands and results.
      flops: of matrix products, except those within kernels written by hand.
      cycles: the TPU compiler's estimate, without kernels written by hand and collectives.
      collectives: how often each kind runs.
      collective_bytes: size of their results in total.
      largest_collective: size of the largest array of each kind; XLA combines several arrays in one collective.
      slow_collectives: those that join devices of several slices.
      slow_bytes: size of their results in total.
      custom_calls: how often kernels of libraries or written by hand run, by their target.
      open_loops: loops of unknown length, whose bodies are counted once.
    """

    kernels: int = 0
    bytes: float = 0
    flops: float = 0
    cycles: float = 0
    collectives: Counter[str] = field(default_factory=Counter)
    collective_bytes: Counter[str] = field(default_factory=Counter)
    largest_collective: dict[str, int] = field(default_factory=dict)
    slow_collectives: Counter[str] = field(default_factory=Counter)
    slow_bytes: Counter[str] = field(default_factory=Counter)
    custom_calls: Counter[str] = field(default_factory=Counter)
    open_loops: int = 0

    def add(self, other: "Counts", times: int = 1) -> None:
        """Adds what another program does, `times` times."""
        self.kernels += times * other.kernels
        self.bytes += times * other.bytes
        self.flops += times * other.flops
        self.cycles += times * other.cycles
        self.open_loops += times * other.open_loops
        for mine, its in (
            (self.collectives, other.collectives),
            (self.collective_bytes, other.collective_bytes),
            (self.slow_collectives, other.slow_collectives),
            (self.slow_bytes, other.slow_bytes),
            (self.custom_calls, other.custom_calls),
        ):
            for key, n in its.items():
                mine[key] += times * n
        for kind, size in other.largest_collective.items():
            self.largest_collective[kind] = max(self.largest_collective.get(kind, 0), size)


def count(text: str, slice_size: int = 0) -> Counts:
    """Counts what a compiled program does; of a conditional, the branch with most kernels.

    Args:
      text: from `jax.stages.Compiled.as_text`.
      slice_size: devices of a slice, which are successive in the mesh; 0: there is one slice.
    """
    return _Program(text, slice_size).counts()


def array_bytes(type_text: str, *, everywhere: bool = False) -> int:
    """Bytes of all arrays in a type, without those in a TPU's fast memory unless `everywhere`."""
    total = 0
    for dtype, dims, layout in _ARRAY.findall(type_text):
        if everywhere or "S(1)" not in layout:
            bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])  # type: ignore[index]
            total += math.prod(_sizes(dims)) * bits // 8
    return total


def _sizes(dims: str) -> list[int]:
    return [int(n) for n in dims.split(",") if n]


def _shape(type_text: str) -> list[int]:
    found = _ARRAY.search(type_text)
    return _sizes(found[2]) if found else []


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of every computation, and the name of the first one to run."""
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    entry = ""
    for line in text.splitlines():
        head = None if line.startswith((" ", "HloModule")) else _COMPUTATION.match(line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found:
            type_text, tail = _split_type(found[2])
            opcode = _OPCODE.match(tail)
            if opcode:
                current.append(Instruction(found[1], type_text, opcode[1], tail))
    return computations, entry


def _split_type(text: str) -> tuple[str, str]:
    if not text.startswith("("):
        first, _, rest = text.partition(" ")
        return first, rest
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :].lstrip()
    return text, ""


class _Program:
    def __init__(self, text: str, slice_size: int) -> None:
        self._slice_size = slice_size
        self.computations, self.entry = _parse(text)
        self.types = {
            name: {instruction.name: instruction.type for instruction in body}
            for name, body in self.computations.items()
        }
        self._cached: dict[str, Counts] = {}

    def counts(self) -> Counts:
        return self._computation(self.entry)

    def _computation(self, name: str) -> Counts:
        if name not in self._cached:
            total = Counts()
            for instruction in self.computations.get(name, []):
                self._count(name, instruction, total)
            self._cached[name] = total
        return self._cached[name]

    def _count(self, within: str, it: Instruction, total: Counts) -> None:
        if it.opcode in _FREE or it.opcode.endswith(("-done", "-update")):
            return
        if it.opcode == "while":
            times = self._trip_count(it)
            total.open_loops += times is None
            total.add(self._computation(it.called("body") or ""), 1 if times is None else times)
        elif it.opcode == "conditional":
            branches = [self._computation(name) for name in it.branches()]
            total.add(max(branches, key=lambda counts: counts.kernels, default=Counts()))
        elif it.opcode in ("call", "async-start"):
            total.add(self._computation(it.called("to_apply") or it.called("calls") or ""))
        else:
            total.add(self._kernel(within, it))

    def _kernel(self, within: str, it: Instruction) -> Counts:
        counts = Counts(kernels=1, flops=self._flops(within, it))
        cycles = _CYCLES.search(it.tail)
        if cycles and int(cycles[1]) < 2**60:  # larger ones stand for "unknown"
            counts.cycles = int(cycles[1])
        kind = it.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            counts.collectives[kind] = 1
            counts.collective_bytes[kind] = self._result_bytes(it)
            counts.largest_collective[kind] = max(_iterate_arrays(it.type), default=0)
            if self._slice_size and crosses(device_groups(it.tail), self._slice_size):
                counts.slow_collectives[kind], counts.slow_bytes[kind] = 1, counts.collective_bytes[kind]
        # Between its slices, a TPU's compiler replaces a collective by transfers through the hosts.
        between_slices = _TRANSFER.search(it.tail) if it.opcode == "send" else None
        if between_slices:
            kind = between_slices[1].lower().replace("_", "-")
            counts.slow_collectives[kind] = 1
            counts.slow_bytes[kind] = next(_iterate_arrays(it.type), 0)
        if it.opcode == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', it.tail)
            counts.custom_calls[target[1] if target else "?"] = 1
        fused = it.called("calls") if it.opcode == "fusion" else None
        counts.bytes = self._fusion_bytes(fused) if fused else self._plain_bytes(within, it)
        return counts

    def _result_bytes(self, it: Instruction) -> int:
        """Bytes of a collective's result; those that run in the background have a tuple that begins with the input."""
        if it.opcode.endswith("-start") and it.opcode != "all-reduce-start":
            if it.opcode == "collective-permute-start":
                return array_bytes(it.type, everywhere=True) // 2
            return _last_bytes(it.type)
        return array_bytes(it.type, everywhere=True)

    def _trip_count(self, loop: Instruction) -> int | None:
        known = _TRIP_COUNT.search(loop.tail)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.called("condition") or "", [])
        constants = {
            it.name: int(found[1])
            for it in condition
            if (found := re.match(r"constant\((-?\d+)\)", it.tail)) is not None
        }
        if condition and condition[-1].opcode == "compare" and "direction=LT" in condition[-1].tail:
            return next((constants[name] for name in condition[-1].operands() if name in constants), None)
        return None

    # --- bytes ----------------------------------------------------------------------------------------

    def _plain_bytes(self, within: str, it: Instruction) -> float:
        types = self.types[within]
        if it.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * array_bytes(it.type)
        if it.opcode == "dynamic-update-slice":
            return 2 * array_bytes(types.get(it.operands()[1], ""))
        if it.opcode in ("iota", "copy-start") or it.opcode.endswith("-start"):
            return array_bytes(it.type)
        return array_bytes(it.type) + sum(array_bytes(types.get(name, "")) for name in it.operands())

    def _fusion_bytes(self, name: str) -> float:
        """Bytes that a fused kernel reads of its parameters and writes; slices count as their own size."""
        body = self.computations.get(name, [])
        if not body:
            return 0
        users: dict[str, list[tuple[Instruction, int]]] = {}
        for it in body:
            if it.opcode != "parameter":
                for position, operand in enumerate(it.operands()):
                    users.setdefault(operand, []).append((it, position))
        by_name = {it.name: it for it in body}
        read = sum(_bytes_read(it.name, array_bytes(it.type), users) for it in body if it.opcode == "parameter")
        return read + self._bytes_written(body[-1].name, by_name)

    def _bytes_written(self, name: str, by_name: dict[str, Instruction]) -> float:
        it = by_name.get(name)
        if it is None:
            return 0
        if it.opcode == "tuple":
            return sum(self._bytes_written(operand, by_name) for operand in it.operands())
        if it.opcode == "dynamic-update-slice":
            return array_bytes(by_name[it.operands()[1]].type)
        if it.opcode == "bitcast":
            return self._bytes_written(it.operands()[0], by_name)
        return array_bytes(it.type)

    # --- FLOPs ----------------------------------------------------------------------------------------

    def _flops(self, within: str, it: Instruction) -> float:
        """Matrix FLOPs of an instruction, or of what it fuses."""
        types = self.types[within]
        if it.opcode == "fusion":
            fused = it.called("calls") or ""
            return sum(self._flops(fused, inner) for inner in self.computations.get(fused, []))
        if it.opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", it.tail)
            return _product_flops(it, types, _sizes(contracted[1]) if contracted else [])
        if it.opcode == "custom-call" and "__cublas$" in it.tail:
            contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', it.tail)
            return _product_flops(it, types, [int(n) for n in re.findall(r"\d+", contracted[1])] if contracted else [])
        if it.opcode == "convolution":
            return _convolution_flops(it, types)
        return 0


def _last_bytes(type_text: str) -> int:
    """Bytes of the result in the tuple (inputs, results) of an operation in the background."""
    arrays = list(_iterate_arrays(type_text))
    return sum(arrays[len(arrays) // 2 :])


def _iterate_arrays(type_text: str) -> Iterator[int]:
    for found in _ARRAY.finditer(type_text):
        yield array_bytes(found[0], everywhere=True)


def _bytes_read(name: str, full: int, users: dict[str, list[tuple[Instruction, int]]], depth: int = 0) -> int:
    """Bytes that a fused kernel reads of one operand: the slices it takes, or all."""
    most = 0
    for it, position in users.get(name, []):
        if it.opcode in ("dynamic-slice", "slice", "gather") and position == 0:
            most = max(most, array_bytes(it.type))
        elif it.opcode == "dynamic-update-slice" and position == 0:
            continue  # overwritten in place
        elif it.opcode == "bitcast" and depth < 4:
            most = max(most, _bytes_read(it.name, full, users, depth + 1))
        else:
            return full
    return min(most, full)


def _product_flops(it: Instruction, types: dict[str, str], contracted: list[int]) -> float:
    left = _shape(types.get(it.operands()[0], ""))
    return 2.0 * math.prod(_shape(it.type)) * math.prod(left[i] for i in contracted if i < len(left))


def _convolution_flops(it: Instruction, types: dict[str, str]) -> float:
    """FLOPs of a convolution, the form in which TPU programs have matrix products.

    A batch of products is written with a window over the batch, of which a single position lies inside the input. So
    only the positions inside are counted.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", it.tail)
    if labels is None:
        return 0
    shapes = [*(_shape(types.get(name, "")) for name in it.operands()[:2]), _shape(it.type)]
    left, right, out = (
        dict(zip(names, sizes, strict=False)) for names, sizes in zip(labels.groups(), shapes, strict=True)
    )
    products = 2.0 * out["b"] * out["f"] * right["i"]
    for axis in range(len(shapes[0]) - 2):
        n_left, n_right, n_out = (sizes[str(axis)] for sizes in (left, right, out))
        before, stride, dilation, spread = _window(it.tail, axis)
        position = np.arange(n_out)[:, None] * stride + np.arange(n_right) * dilation - before
        inside = (position >= 0) & (position <= (n_left - 1) * spread) & (position % spread == 0)
        products *= np.count_nonzero(inside)
    return float(products)


def _window(tail: str, axis: int) -> tuple[int, int, int, int]:
    """Padding before the input, stride, dilation of the window and distance of the input's elements, along an axis."""
    found = re.search(r"window=\{([^}]*)\}", tail)
    fields = dict(re.findall(r"(\w+)=([\dx_\-]+)", found[1])) if found else {}
    defaults = {"pad": "0_0", "stride": "1", "rhs_dilate": "1", "lhs_dilate": "1"}
    values = [fields[name].split("x")[axis] if name in fields else default for name, default in defaults.items()]
    before, stride, dilation, spread = (int(value.split("_")[0]) for value in values)
    return before, stride, dilation, spread
