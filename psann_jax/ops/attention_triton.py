"""Causal attention on GPUs by Pallas kernels for Triton, in 16 bits or in full float32.

One kernel computes the output, one the gradients of keys and values, one that of queries. Each program owns a tile of
T tokens of one head and reads the tiles of the documents that it touches, and no others. Documents are runs of tokens,
see `attention_documents`, so these tiles are neighbours.

Source: Dao, "FlashAttention-2", 2023.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import kernels
from psann_jax.ops.attention_documents import document_numbers
from psann_jax.ops.attention_dropout import MaskForm, MaskWords, mask_factors, mask_form, mask_words
from psann_jax.ops.attention_reference import Variant
from psann_jax.ops.tiles import MASK_VALUE, Dropout, tiles_back, within

_LOG2_E = math.log2(math.e)


class _Tiling(NamedTuple):
    """Static sizes of the kernels.

    Attributes:
      tile: T, tokens of a tile; the padded window is a multiple of it.
      scale: factor of the scores.
      window: tokens that a query sees; 0: all.
      interpret: runs the kernels in Python.
      masks: of dropout; None: no weights are dropped.
    """

    tile: int
    scale: float
    window: int
    interpret: bool
    masks: MaskForm | None = None


class _Rows(NamedTuple):
    """Documents of the padded rows, by token and by tile, and what determines the dropped weights.

    Attributes:
      numbers_BxL: document of each token.
      first_Bxn: first tile that the queries of each tile see: where the document of its first token begins, or later
        with a sliding window.
      last_Bxn: last tile whose queries see the keys of each tile: where the document of its last token ends, or
        earlier.
      words: see `MaskWords`, for heads of queries; None: no weights are dropped.
    """

    numbers_BxL: Array
    first_Bxn: Array
    last_Bxn: Array
    words: MaskWords | None = None


def tile_length(head_dim: int, dtype: Any) -> int:
    """Returns T, for which the tiles that a program holds at a time fit the 99 KiB of a consumer GPU."""
    most = 64 if jnp.dtype(dtype).itemsize == 2 else 32
    return most if head_dim <= 128 else most // 2


def triton_attention(  # noqa: PLR0913 - keywords of one operation
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None,
    words: MaskWords | None = None,
    *,
    window: int = 0,
    dropout_rate: float = 0.0,
    interpret: bool = False,
) -> Array:
    """Computes `causal_attention` in bf16, fp16 or float32 on a GPU, with the accuracy of the type.

    Args:
      q_BxLxHxK: queries.
      k_BxLxGxK: keys.
      v_BxLxGxK: values.
      segment_ids_BxL: document of each token, see `attention_documents`; None: one document per row.
      words: `attention_dropout.mask_words` of these rows and heads of queries; None: no weights are dropped.
      window: tokens that a query sees; 0: all.
      dropout_rate: fraction of the weights to drop.
      interpret: runs the kernels in Python, for tests on a CPU.
    """
    B, L, _, K = q_BxLxHxK.shape
    width = max(16, 2 ** math.ceil(math.log2(K)))  # Triton computes on powers of two
    T = tile_length(width, q_BxLxHxK.dtype)

    def padded(x_BxLxHxK: Array) -> Array:
        return jnp.pad(x_BxLxHxK, ((0, 0), (0, -L % T), (0, 0), (0, width - K)))

    numbers_BxL = jnp.zeros((B, L), jnp.int32) if segment_ids_BxL is None else document_numbers(segment_ids_BxL)
    rows = _rows(jnp.pad(numbers_BxL, ((0, 0), (0, -L % T)), constant_values=-1), T, window)._replace(words=words)
    tiling = _Tiling(T, 1 / math.sqrt(K), window, interpret, None if words is None else mask_form(dropout_rate, L))
    return _attend(tiling, padded(q_BxLxHxK), padded(k_BxLxGxK), padded(v_BxLxGxK), rows)[:, :L, :, :K]


def _rows(numbers_BxL: Array, T: int, window: int) -> _Rows:
    index = jnp.arange(numbers_BxL.shape[1], dtype=jnp.int32)
    border_BxL = numbers_BxL[:, 1:] != numbers_BxL[:, :-1]
    begins_BxL = jnp.pad(border_BxL, ((0, 0), (1, 0)), constant_values=True)
    ends_BxL = jnp.pad(border_BxL, ((0, 0), (0, 1)), constant_values=True)
    start_BxL = lax.cummax(jnp.where(begins_BxL, index, 0), axis=1)
    stop_BxL = lax.cummin(jnp.where(ends_BxL, index, index[-1]), axis=1, reverse=True)
    first_Bxn, last_Bxn = start_BxL[:, ::T] // T, stop_BxL[:, T - 1 :: T] // T
    if window:
        tile, back = index[::T] // T, tiles_back(window, T)
        first_Bxn, last_Bxn = jnp.maximum(first_Bxn, tile - back), jnp.minimum(last_Bxn, tile + back)
    return _Rows(numbers_BxL, first_Bxn, last_Bxn)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiling: _Tiling, q: Array, k: Array, v: Array, rows: _Rows) -> Array:
    return _forward(tiling, q, k, v, rows)[0]


def _forward(tiling: _Tiling, q: Array, k: Array, v: Array, rows: _Rows) -> tuple[Array, Any]:
    B, L, H, _ = q.shape
    lse_BxHxL = jax.ShapeDtypeStruct((B, H, L), jnp.float32)
    out, lse = _call(_forward_kernel, tiling, (q, k, v), (), rows, (jax.ShapeDtypeStruct(q.shape, q.dtype), lse_BxHxL))
    return out, (q, k, v, rows, out, lse)


def _backward(tiling: _Tiling, saved: Any, dout: Array) -> tuple[Any, ...]:
    q, k, v, rows, out, lse = saved
    (B, L, H, K), G = q.shape, k.shape[2]
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1).swapaxes(1, 2)
    grouped_q, grouped_dout = (x.reshape(B, L, G, H // G, K) for x in (q, dout))
    grouped = tuple(x.reshape(B, G, H // G, L) for x in (lse, delta))
    like_k, like_q = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, q))
    dk, dv = _call(_key_kernel, tiling, (grouped_q, k, v, grouped_dout), grouped, _grouped(rows, G), (like_k, like_k))
    (dq,) = _call(_query_kernel, tiling, (q, k, v, dout), (lse, delta), rows, (like_q,))
    return dq, dk, dv, None


_attend.defvjp(_forward, _backward)


def _grouped(rows: _Rows, G: int) -> _Rows:
    """Returns the rows with the words of the R heads of queries of each head of keys together, (B, G, R)."""
    if rows.words is None:
        return rows
    first_BxH, words_N = rows.words
    return rows._replace(words=MaskWords(first_BxH.reshape(first_BxH.shape[0], G, -1), words_N))


def _call(
    kernel: Callable[..., None],
    tiling: _Tiling,
    arrays: tuple[Array, ...],
    statistics: tuple[Array, ...],
    rows: _Rows,
    results: tuple[jax.ShapeDtypeStruct, ...],
) -> tuple[Array, ...]:
    """Runs a kernel on the grid (tiles, heads of the results, B).

    Args:
      kernel: takes the tiling and references: to a head of each array (L, K) or a group (L, R, K), of each statistic
        (L,) or (R, L), to the numbers (L,), first and last tile of its row (scalars, of its tile), to the words if
        there are any (a scalar or (R,), and all N), and to its tile of each result.
      tiling: static sizes.
      arrays: (B, L, heads, K), with as many heads as the results or fewer, each of which then serves several
        neighbours; or groups of heads, (B, L, heads, R, K).
      statistics: (B, heads, L) or (B, heads, R, L).
      rows: of the documents.
      results: shapes of the results, (B, L, heads, K) or (B, heads, L).
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, L, H, K = results[0].shape
    T = tiling.tile

    def whole(x: Any) -> pl.BlockSpec:
        if len(x.shape) == 5:
            return pl.BlockSpec((None, L, None, x.shape[3], K), lambda i, h, b: (b, 0, h, 0, 0))
        share = H // x.shape[2]
        return pl.BlockSpec((None, L, None, K), lambda i, h, b: (b, 0, h // share, 0))

    def row(x: Any) -> pl.BlockSpec:
        shape = x.shape[2:]
        return pl.BlockSpec((None, None, *shape), lambda i, h, b: (b, h, *(0,) * len(shape)))

    numbers = pl.BlockSpec((None, L), lambda i, h, b: (b, 0))
    scalar = pl.BlockSpec((None, None), lambda i, h, b: (b, i))
    words: tuple[pl.BlockSpec, ...] = ()
    if rows.words is not None:
        words = row(rows.words.first_BxH), pl.BlockSpec(rows.words.words_N.shape, lambda i, h, b: (0,))
    part = {
        4: pl.BlockSpec((None, T, None, K), lambda i, h, b: (b, i, h, 0)),
        3: pl.BlockSpec((None, None, T), lambda i, h, b: (b, h, i)),
    }
    wide = K * arrays[0].dtype.itemsize > 128
    run = pl.pallas_call(
        partial(kernel, tiling),
        grid=(L // T, H, B),
        in_specs=[*map(whole, arrays), *map(row, statistics), numbers, scalar, scalar, *words],
        out_specs=[part[len(result.shape)] for result in results],
        out_shape=list(results),
        # Two stages load the next tile during the work on one; wide tiles have no room for that in a backward pass.
        compiler_params=triton.CompilerParams(num_warps=8 if wide else 4, num_stages=1 if wide and statistics else 2),
        interpret=tiling.interpret,
        name=kernel.__name__.strip("_"),
    )
    return tuple(run(*arrays, *statistics, *jax.tree.leaves(rows)))


# --- kernels --------------------------------------------------------------------------------------------


def _dot(tiling: _Tiling, a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Multiplies two tiles into float32.

    A product of float32 tiles is the sum of three products of their TF32 parts, whose error is about that of float32;
    a single one would have an error of 1e-3, and units for float32 are a tenth as fast.
    """
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    split = a.dtype == jnp.float32 and not tiling.interpret
    precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if split else lax.Precision.HIGHEST
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _scores(tiling: _Tiling, q_TxK: Array, k_TxK: Array, numbers: Any, i: Any, j: Any) -> Array:
    """Returns the scores of query tile i and key tile j times log2(e), masked, (T, T)."""
    T = tiling.tile
    s_TxT = _dot(tiling, q_TxK, k_TxK, (1, 1)) * (tiling.scale * _LOG2_E)
    index = jnp.arange(T)
    visible = within((i * T + index)[:, None] - (j * T + index)[None], tiling.window)
    visible &= numbers[_tile(i, T)][:, None] == numbers[_tile(j, T)][None]
    return jnp.where(visible, s_TxT, MASK_VALUE)


def _dropped(tiling: _Tiling, arrays_TxT: tuple[Array, ...], words: Any, i: Any, j: Any) -> tuple[Array, ...]:
    """Multiplies arrays of tile (i, j) by the factors of dropout."""
    if tiling.masks is None:
        return arrays_TxT
    T = tiling.tile
    factors_TxT = mask_factors(tiling.masks, words, T, i * T, j * T)
    return tuple(x_TxT * factors_TxT for x_TxT in arrays_TxT)


def _words_of(words: list[Any], head: Any = ...) -> tuple[Any, ...]:
    """Returns the arguments of `mask_factors` for one head of queries of a program; none without dropout."""
    return (words[0][head], words[1]) if words else ()


def _tile(i: Any, T: int) -> Any:
    from jax.experimental import pallas as pl

    return pl.ds(i * T, T)


def _own_tile() -> Any:
    from jax.experimental import pallas as pl

    return pl.program_id(0)


def _forward_kernel(tiling: _Tiling, q: Any, k: Any, v: Any, *refs: Any) -> None:
    numbers, first, _, *words, out, lse = refs
    T, i = tiling.tile, _own_tile()
    q_TxK = q[_tile(i, T), :]

    def step(j: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        max_T, sum_T, acc_TxK = carry
        s_TxT = _scores(tiling, q_TxK, k[_tile(j, T), :], numbers, i, j)
        new_max_T = jnp.maximum(max_T, jnp.max(s_TxT, axis=1))
        p_TxT = jnp.exp2(s_TxT - new_max_T[:, None])
        rescale_T = jnp.exp2(max_T - new_max_T)
        v_TxK = v[_tile(j, T), :]
        (kept_TxT,) = _dropped(tiling, (p_TxT,), _words_of(words), i, j)
        acc_TxK = acc_TxK * rescale_T[:, None] + _dot(tiling, kept_TxT.astype(v_TxK.dtype), v_TxK, (1, 0))
        return new_max_T, sum_T * rescale_T + jnp.sum(p_TxT, axis=1), acc_TxK

    init = jnp.full((T,), MASK_VALUE, jnp.float32), jnp.zeros((T,), jnp.float32), jnp.zeros(q_TxK.shape, jnp.float32)
    max_T, sum_T, acc_TxK = lax.fori_loop(first[...], i + 1, step, init)
    out[...] = (acc_TxK / sum_T[:, None]).astype(out.dtype)
    lse[...] = max_T + jnp.log2(sum_T)


def _slopes(tiling: _Tiling, rows: tuple[Any, ...], tiles_TxK: tuple[Array, ...], i: Any, j: Any) -> Any:
    """Returns the weights of tile (i, j) and the gradient of its scores without the scale, both (T, T) float32."""
    lse_T, delta_T, numbers, words = rows
    q_TxK, k_TxK, v_TxK, dout_TxK = tiles_TxK
    s_TxT = _scores(tiling, q_TxK, k_TxK, numbers, i, j)
    p_TxT = jnp.exp2(s_TxT - lse_T[:, None])
    kept_TxT, dp_TxT = _dropped(tiling, (p_TxT, _dot(tiling, dout_TxK, v_TxK, (1, 1))), words, i, j)
    return kept_TxT, p_TxT * (dp_TxT - delta_T[:, None])


def _key_kernel(tiling: _Tiling, q: Any, k: Any, v: Any, dout: Any, *refs: Any) -> None:
    lse, delta, numbers, _, last, *words, dk, dv = refs
    T, j = tiling.tile, _own_tile()
    k_TxK, v_TxK = k[_tile(j, T), :], v[_tile(j, T), :]

    def step(head: Any, i: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        q_TxK, dout_TxK = q[_tile(i, T), head, :], dout[_tile(i, T), head, :]
        rows = lse[head, _tile(i, T)], delta[head, _tile(i, T)], numbers, _words_of(words, head)
        p_TxT, ds_TxT = _slopes(tiling, rows, (q_TxK, k_TxK, v_TxK, dout_TxK), i, j)
        dv_TxK = sums[1] + _dot(tiling, p_TxT.astype(dout_TxK.dtype), dout_TxK, (0, 0))
        return sums[0] + _dot(tiling, ds_TxT.astype(q_TxK.dtype), q_TxK, (0, 0)), dv_TxK

    def add_head(head: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        return lax.fori_loop(j, last[...] + 1, partial(step, head), sums)

    zeros = jnp.zeros(k_TxK.shape, jnp.float32)
    dk_TxK, dv_TxK = lax.fori_loop(0, q.shape[1], add_head, (zeros, zeros))
    dk[...] = (tiling.scale * dk_TxK).astype(dk.dtype)
    dv[...] = dv_TxK.astype(dv.dtype)


def _query_kernel(tiling: _Tiling, q: Any, k: Any, v: Any, dout: Any, *refs: Any) -> None:
    lse, delta, numbers, first, _, *words, dq = refs
    T, i = tiling.tile, _own_tile()
    q_TxK, dout_TxK = q[_tile(i, T), :], dout[_tile(i, T), :]
    rows = lse[_tile(i, T)], delta[_tile(i, T)], numbers, _words_of(words)

    def step(j: Any, dq_TxK: Array) -> Array:
        k_TxK, v_TxK = k[_tile(j, T), :], v[_tile(j, T), :]
        _, ds_TxT = _slopes(tiling, rows, (q_TxK, k_TxK, v_TxK, dout_TxK), i, j)
        return dq_TxK + _dot(tiling, ds_TxT.astype(k_TxK.dtype), k_TxK, (1, 0))

    dq_TxK = lax.fori_loop(first[...], i + 1, step, jnp.zeros(q_TxK.shape, jnp.float32))
    dq[...] = (tiling.scale * dq_TxK).astype(dq.dtype)


# --- example for the check on a device ------------------------------------------------------------------


@kernels.example("attention.triton")
def _example(*variant: Any) -> kernels.Example:
    case, B, L = Variant(*variant), 2, 300  # borders of the masks of dropout are not those of the kernel's tiles

    def attend(q: Array, k: Array, v: Array, ids_BxL: Array | None, dropout: Dropout, *, window: int) -> Array:
        words = None if dropout.key is None else mask_words(dropout.key, B, q.shape[2], L)
        return triton_attention(q, k, v, ids_BxL, words, window=window, dropout_rate=dropout.rate)

    index = jnp.arange(L)
    segment_ids_BxL = jnp.stack([index // 100 + 1, jnp.where(index < 250, index // 64 + 1, 0)])
    return case.example(attend, segment_ids_BxL, 1e-4 if case.dtype == "float32" else 0.03)
