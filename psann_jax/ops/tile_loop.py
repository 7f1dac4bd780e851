"""Pallas kernels over pairs of tiles of a causal window: one body for GPUs and TPUs.

Every tile of T tokens has a program that holds the tile (its "fixed" side) and visits other tiles of the same row and
head (its "looped" side) in order. On GPUs the program loops over them. On TPUs each visit is a step of the grid, and
the sums stay in scratch memory between the steps; so the memory of a program does not depend on the window.

Arrays have one of three kinds. "rows": (B or 1, H or 1, F, L), F numbers per token. "values": (B, L, H, K), or
(B, H, L, K) on TPUs, which can only cut the last two dimensions. "scalars": (B or 1, H, 1, F).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Kind = Literal["rows", "values", "scalars"]
Sums = tuple[Array, ...]
Index = int | Array
Place = Callable[..., tuple[Any, Any, Any]]


class Target(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
      platform: "gpu" (Triton) or "tpu" (Mosaic).
      T: tokens per tile: a power of two from 16 on GPUs, a multiple of 128 on TPUs.
      interpret: runs the kernel with JAX operations instead, on any device; for tests.
    """

    platform: str
    T: int
    interpret: bool = False

    def padded(self, length: int) -> int:
        """Returns the smallest multiple of the tile that holds a window."""
        return -(-length // self.T) * self.T

    def values_shape(self, B: int, H: int, L: int, K: int) -> tuple[int, int, int, int]:
        """Returns the shape of an array of "values"."""
        return (B, L, H, K) if self.platform == "gpu" else (B, H, L, K)

    def dot(self, x: Array, y: Array, contract: tuple[int, int]) -> Array:
        """Returns the product of two matrices of one type in float32, with the precision of that type."""
        precision: Any = None
        if x.dtype == jnp.float32:
            # Triton would compute the highest precision without tensor cores.
            x3 = self.platform == "gpu" and not self.interpret
            precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if x3 else lax.Precision.HIGHEST
        dimensions = (((contract[0],), (contract[1],)), ((), ()))
        return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


class Operand(NamedTuple):
    """An array that a kernel reads.

    Attributes:
      kind: see above.
      array: the array; its length is a multiple of the tile.
    """

    kind: Kind
    array: Array

    def sizes(self, target: Target) -> tuple[int, int, int]:
        """Returns its rows, heads and numbers per token (or per row and head), each of them 1 if all share them."""
        B, second, third, last = self.array.shape
        if self.kind == "values":
            return B, third if target.platform == "gpu" else second, last
        return B, second, third if self.kind == "rows" else last


class Result(NamedTuple):
    """An array that a kernel writes, for the tokens of the fixed tile.

    Attributes:
      kind: "rows" or "values".
      size: F or K.
      dtype: its type.
    """

    kind: Kind
    size: int
    dtype: Any


class Side:
    """Arrays of the tokens of one tile, inside a kernel.

    Attributes:
      position: position of the first token.
      T: tokens per tile.
    """

    def __init__(self, refs: dict[str, Any], position: Array, T: int, *, whole: bool):
        from jax.experimental import pallas as pl

        self.position, self.T = position, T
        self._refs = refs
        self._span: Any = pl.ds(pl.multiple_of(position, T), T) if whole else slice(None)

    def __contains__(self, name: str) -> bool:
        return name in self._refs

    def row(self, name: str, index: Index = 0) -> Array:
        """Returns a number of every token, (1, T)."""
        from jax.experimental import pallas as pl

        row: Array = self._refs[name][pl.ds(index, 1), self._span]
        return row

    def column(self, name: str, index: Index = 0) -> Array:
        """Returns a number of every token, (T, 1)."""
        return self.row(name, index).T

    def rows(self, name: str) -> Array:
        """Returns all numbers of every token, (F, T)."""
        rows: Array = self._refs[name][:, self._span]
        return rows

    def values(self, name: str) -> Array:
        """Returns the values, (T, K)."""
        values: Array = self._refs[name][self._span, :]
        return values

    def positions(self, axis: int) -> Array:
        """Returns the positions of the tokens, (T, 1) for axis 0 and (1, T) for axis 1, int32."""
        shape = (self.T, 1) if axis == 0 else (1, self.T)
        return self.position + lax.broadcasted_iota(jnp.int32, shape, axis)


class Scalars:
    """Numbers of a row and head, inside a kernel."""

    def __init__(self, refs: dict[str, Any]):
        self._refs = refs

    def get(self, name: str, index: int) -> Array:
        """Returns one number as an array (1, 1)."""
        number: Array = self._refs[name][0:1, index : index + 1]
        return number


class Body(NamedTuple):
    """What a kernel computes.

    Attributes:
      step: adds a visited tile to the sums: (fixed, looped, scalars, sums) -> sums.
      finish: returns the results from (fixed, sums), each an array (F, T) or (T, K) or a tuple of rows (1, T).
      init: shape and initial value of each sum, float32.
    """

    step: Callable[[Side, Side, Scalars, Sums], Sums]
    finish: Callable[[Side, Sums], tuple[Any, ...]]
    init: tuple[tuple[tuple[int, int], float], ...]


class Visits(NamedTuple):
    """The looped tiles of every fixed tile i: first[b, i] to last[b, i] - 1.

    Attributes:
      first_BxN: int32; B is 1 if they are the same for all rows.
      last_BxN: int32.
    """

    first_BxN: Array
    last_BxN: Array


def causal_visits(T: int, length: int, segment_ids_BxL: Array | None) -> tuple[Visits, Visits]:
    """Returns the key tiles that each query tile visits, and the query tiles that each key tile visits.

    Tiles before the first and after the last one that can contain a token of the same document are left out.

    Args:
      T: tokens per tile.
      length: of the window, a multiple of T.
      segment_ids_BxL: document of each token; None: one document per row.
    """
    n = length // T
    met_BxNxN: Any = np.tri(n, dtype=bool)[None]
    if segment_ids_BxL is not None:
        ids_BxNxT = segment_ids_BxL.reshape(-1, n, T)
        low_BxN, high_BxN = ids_BxNxT.min(-1), ids_BxNxT.max(-1)
        met_BxNxN = met_BxNxN & (low_BxN[:, :, None] <= high_BxN[:, None]) & (low_BxN[:, None] <= high_BxN[:, :, None])
    index = jnp.arange(n, dtype=jnp.int32)
    first_BxN = jnp.min(jnp.where(met_BxNxN, index, n), 2)
    last_BxN = jnp.max(jnp.where(met_BxNxN, index[:, None] + 1, 0), 1)
    index_BxN = jnp.broadcast_to(index, first_BxN.shape)
    return Visits(first_BxN, index_BxN + 1), Visits(index_BxN, last_BxN)


@dataclass(frozen=True)
class TileLoop:
    """A kernel and its arrays.

    Attributes:
      name: of the kernel, in profiles.
      body: what it computes.
      shape: B, H, L.
      visits: the looped tiles of each fixed tile.
      fixed: arrays of the fixed tile.
      looped: arrays of the looped tile.
      scalars: numbers of each row and head.
      results: what it writes.
      late_first: starts with the late tiles, which is faster if they visit more tiles.
    """

    name: str
    body: Body
    shape: tuple[int, int, int]
    visits: Visits
    fixed: dict[str, Operand]
    looped: dict[str, Operand]
    scalars: dict[str, Operand]
    results: tuple[Result, ...]
    late_first: bool = False

    def run(self, target: Target) -> list[Array]:
        """Returns the results, "rows" as (B, H, F, L)."""
        bounds = jnp.stack(self.visits).reshape(-1)
        outs: list[Array] = (self._on_gpu if target.platform == "gpu" else self._on_tpu)(target, bounds)
        return outs

    def _on_gpu(self, target: Target, bounds: Array) -> Any:
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton

        B, H, L = self.shape
        n = L // target.T

        def tile(index: Any) -> Any:
            return n - 1 - index if self.late_first else index

        def kernel(bounds_ref: Any, *refs: Any) -> None:
            b, i = pl.program_id(1), tile(pl.program_id(2))
            first, last = self._bounds(bounds_ref, b, i)

            def step(j: Array, sums: Sums) -> Sums:
                return self.body.step(*self._sides(refs, target, i, j), sums)

            init = tuple(jnp.full(shape, value, jnp.float32) for shape, value in self.body.init)
            sums = lax.fori_loop(first, last, step, init)
            self._finish(refs[-len(self.results) :], self._sides(refs, target, i, i)[0], sums)

        def fixed(h: Any, b: Any, i: Any) -> tuple[Any, Any, Any]:
            return b, h, tile(i)

        def whole(h: Any, b: Any, i: Any) -> tuple[Any, Any, Any]:
            return b, h, 0

        kernel.__name__ = self.name  # JAX 0.11 names the kernel by it, JAX 0.10 by the argument
        whole_bounds = pl.BlockSpec(bounds.shape, lambda h, b, i: (0,))
        return pl.pallas_call(
            kernel,
            grid=(H, B, n),
            in_specs=[whole_bounds, *self._specs(target, fixed, whole, L)],
            out_specs=[_spec(target, result.kind, (B, H, result.size), target.T, fixed) for result in self.results],
            out_shape=self._out_shapes(target),
            compiler_params=triton.CompilerParams(num_warps=target.T // 8, num_stages=2),
            interpret=target.interpret,
            name=self.name,
        )(bounds, *self._arrays())

    def _on_tpu(self, target: Target, bounds: Array) -> Any:
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu

        n_sums, n_results = len(self.body.init), len(self.results)
        B, H, L = self.shape
        n = L // target.T

        def kernel(bounds_ref: Any, *refs: Any) -> None:
            b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
            first, last = self._bounds(bounds_ref, b, i)
            sides, sums_refs = self._sides(refs, target, i, j), refs[-n_sums:]

            @pl.when(j == 0)
            def _start() -> None:
                for ref, (shape, value) in zip(sums_refs, self.body.init, strict=True):
                    ref[...] = jnp.full(shape, value, jnp.float32)

            @pl.when((first <= j) & (j < last))
            def _visit() -> None:
                sums = self.body.step(*sides, tuple(ref[...] for ref in sums_refs))
                for ref, value in zip(sums_refs, sums, strict=True):
                    ref[...] = value

            @pl.when(j == n - 1)
            def _end() -> None:
                self._finish(refs[-n_sums - n_results : -n_sums], sides[0], tuple(ref[...] for ref in sums_refs))

        def fixed(b: Any, h: Any, i: Any, j: Any, bounds_ref: Any) -> tuple[Any, Any, Any]:
            return b, h, i

        def visited(b: Any, h: Any, i: Any, j: Any, bounds_ref: Any) -> tuple[Any, Any, Any]:
            # A tile that is not visited is not read either: the block stays the same.
            first, last = self._bounds(bounds_ref, b, i)
            return b, h, jnp.clip(j, first, last - 1)

        out_specs = [_spec(target, result.kind, (B, H, result.size), target.T, fixed) for result in self.results]
        return pl.pallas_call(
            kernel,
            grid_spec=tpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(B, H, n, n),
                in_specs=self._specs(target, fixed, visited, target.T),
                out_specs=out_specs,
                scratch_shapes=[tpu.VMEM(shape, jnp.float32) for shape, _ in self.body.init],
            ),
            out_shape=self._out_shapes(target),
            compiler_params=tpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            ),
            interpret=target.interpret,
            name=self.name,
        )(bounds, *self._arrays())

    def _arrays(self) -> list[Array]:
        groups = (self.fixed, self.looped, self.scalars)
        return [operand.array for group in groups for operand in group.values()]

    def _specs(self, target: Target, fixed: Place, looped: Place, looped_length: int) -> list[Any]:
        def specs(group: dict[str, Operand], length: int, place: Place) -> list[Any]:
            return [_spec(target, x.kind, x.sizes(target), length, place) for x in group.values()]

        T = target.T
        return specs(self.fixed, T, fixed) + specs(self.looped, looped_length, looped) + specs(self.scalars, 1, fixed)

    def _out_shapes(self, target: Target) -> list[jax.ShapeDtypeStruct]:
        B, H, L = self.shape
        in_rows = lambda r: (B, H, r.size, L) if r.kind == "rows" else target.values_shape(B, H, L, r.size)  # noqa: E731
        return [jax.ShapeDtypeStruct(in_rows(result), result.dtype) for result in self.results]

    def _bounds(self, bounds_ref: Any, b: Any, i: Any) -> tuple[Any, Any]:
        rows, n = self.visits.first_BxN.shape
        at = i if rows == 1 else b * n + i
        return bounds_ref[at], bounds_ref[rows * n + at]

    def _sides(self, refs: Any, target: Target, i: Any, j: Any) -> tuple[Side, Side, Scalars]:
        named, start, T = [], 0, target.T
        for group in (self.fixed, self.looped, self.scalars):
            named.append(dict(zip(group, refs[start:], strict=False)))
            start += len(group)
        looped = Side(named[1], j * T, T, whole=target.platform == "gpu")
        return Side(named[0], i * T, T, whole=False), looped, Scalars(named[2])

    def _finish(self, refs: Any, fixed: Side, sums: Sums) -> None:
        for ref, value in zip(refs, self.body.finish(fixed, sums), strict=True):
            if not isinstance(value, tuple):
                ref[...] = value.astype(ref.dtype)
                continue
            for index, row in enumerate(value):
                ref[index : index + 1, :] = row.astype(ref.dtype)


def _spec(target: Target, kind: Kind, sizes: tuple[int, int, int], length: int, place: Place) -> Any:
    """Returns the block of an array of B rows, H heads and F numbers, at the row, head and tile of `place`."""
    from jax.experimental import pallas as pl

    B, H, F = sizes

    def block(*ids: Any) -> tuple[Any, ...]:
        b, h, tile = place(*ids)
        b, h = b if B > 1 else 0, h if H > 1 else 0
        if kind == "values":
            return (b, tile, h, 0) if target.platform == "gpu" else (b, h, tile, 0)
        return (b, h, 0, tile if kind == "rows" else 0)

    if kind == "values":
        shape = (None, length, None, F) if target.platform == "gpu" else (None, None, length, F)
    else:
        shape = (None, None, F, length) if kind == "rows" else (None, None, 1, F)
    return pl.BlockSpec(shape, block)
