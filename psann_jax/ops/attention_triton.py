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
from psann_jax.ops.attention_reference import exact_attention
from psann_jax.ops.tiles import MASK_VALUE, NO_DROPOUT, Dropout

_LOG2_E = math.log2(math.e)


class _Tiling(NamedTuple):
    """Static sizes of the kernels.

    Attributes:
      tile: T, tokens of a tile; the padded window is a multiple of it.
      scale: factor of the scores.
      interpret: runs the kernels in Python.
      masks: of dropout; None: no weights are dropped.
    """

    tile: int
    scale: float
    interpret: bool
    masks: MaskForm | None = None


class _Rows(NamedTuple):
    """Documents of the padded window, by token and by tile, and what determines the dropped weights.

    Attributes:
      numbers_BxL: document of each token.
      first_Bxn: first tile of the documents that the first token of each tile belongs to.
      last_Bxn: last tile of the document that the last token of each tile belongs to.
      words: see `MaskWords`; None: no weights are dropped.
    """

    numbers_BxL: Array
    first_Bxn: Array
    last_Bxn: Array
    words: MaskWords | None = None


def tile_length(head_dim: int, dtype: Any) -> int:
    """Returns T, for which the tiles that a program holds at a time fit the 99 KiB of a consumer GPU."""
    most = 64 if jnp.dtype(dtype).itemsize == 2 else 32
    return most if head_dim <= 128 else most // 2


def triton_attention(
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    segment_ids_BxL: Array | None,
    words: MaskWords | None = None,
    *,
    dropout_rate: float = 0.0,
    interpret: bool = False,
) -> Array:
    """Computes `causal_attention` in bf16, fp16 or float32 on a GPU, with the accuracy of the type.

    Args:
      q_BxLxHxK: queries.
      k_BxLxHxK: keys.
      v_BxLxHxK: values.
      segment_ids_BxL: document of each token, see `attention_documents`; None: one document per row.
      words: `attention_dropout.mask_words` of these rows and heads; None: no weights are dropped.
      dropout_rate: fraction of the weights to drop.
      interpret: runs the kernels in Python, for tests on a CPU.
    """
    B, L, _, K = q_BxLxHxK.shape
    width = max(16, 2 ** math.ceil(math.log2(K)))  # Triton computes on powers of two
    T = tile_length(width, q_BxLxHxK.dtype)

    def padded(x_BxLxHxK: Array) -> Array:
        return jnp.pad(x_BxLxHxK, ((0, 0), (0, -L % T), (0, 0), (0, width - K)))

    numbers_BxL = jnp.zeros((B, L), jnp.int32) if segment_ids_BxL is None else document_numbers(segment_ids_BxL)
    rows = _rows(jnp.pad(numbers_BxL, ((0, 0), (0, -L % T)), constant_values=-1), T)._replace(words=words)
    tiling = _Tiling(T, 1 / math.sqrt(K), interpret, None if words is None else mask_form(dropout_rate, L))
    return _attend(tiling, padded(q_BxLxHxK), padded(k_BxLxHxK), padded(v_BxLxHxK), rows)[:, :L, :, :K]


def _rows(numbers_BxL: Array, T: int) -> _Rows:
    index = jnp.arange(numbers_BxL.shape[1], dtype=jnp.int32)
    border_BxL = numbers_BxL[:, 1:] != numbers_BxL[:, :-1]
    begins_BxL = jnp.pad(border_BxL, ((0, 0), (1, 0)), constant_values=True)
    ends_BxL = jnp.pad(border_BxL, ((0, 0), (0, 1)), constant_values=True)
    start_BxL = lax.cummax(jnp.where(begins_BxL, index, 0), axis=1)
    stop_BxL = lax.cummin(jnp.where(ends_BxL, index, index[-1]), axis=1, reverse=True)
    return _Rows(numbers_BxL, start_BxL[:, ::T] // T, stop_BxL[:, T - 1 :: T] // T)


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
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1).swapaxes(1, 2)
    like = jax.ShapeDtypeStruct(q.shape, q.dtype)
    dk, dv = _call(_key_kernel, tiling, (q, k, v, dout), (lse, delta), rows, (like, like))
    (dq,) = _call(_query_kernel, tiling, (q, k, v, dout), (lse, delta), rows, (like,))
    return dq, dk, dv, None


_attend.defvjp(_forward, _backward)


def _call(
    kernel: Callable[..., None],
    tiling: _Tiling,
    arrays: tuple[Array, ...],
    statistics: tuple[Array, ...],
    rows: _Rows,
    results: tuple[jax.ShapeDtypeStruct, ...],
) -> tuple[Array, ...]:
    """Runs a kernel on the grid (tiles, H, B).

    Args:
      kernel: takes the tiling and references: to a head of each array (L, K), of each statistic (L,), to the numbers
        (L,), first and last tile of its row (scalars, of its tile), to the words if there are any (a scalar and all
        N), and to its tile of each result.
      tiling: static sizes.
      arrays: (B, L, H, K).
      statistics: (B, H, L).
      rows: of the documents.
      results: shapes of the results, (B, L, H, K) or (B, H, L).
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, L, H, K = arrays[0].shape
    T = tiling.tile
    whole = pl.BlockSpec((None, L, None, K), lambda i, h, b: (b, 0, h, 0))
    row = pl.BlockSpec((None, None, L), lambda i, h, b: (b, h, 0))
    numbers = pl.BlockSpec((None, L), lambda i, h, b: (b, 0))
    scalar = pl.BlockSpec((None, None), lambda i, h, b: (b, i))
    words: list[pl.BlockSpec] = []
    if rows.words is not None:
        words.append(pl.BlockSpec((None, None), lambda i, h, b: (b, h)))
        words.append(pl.BlockSpec(rows.words.words_N.shape, lambda i, h, b: (0,)))
    part = {
        4: pl.BlockSpec((None, T, None, K), lambda i, h, b: (b, i, h, 0)),
        3: pl.BlockSpec((None, None, T), lambda i, h, b: (b, h, i)),
    }
    wide = K * arrays[0].dtype.itemsize > 128
    run = pl.pallas_call(
        partial(kernel, tiling),
        grid=(L // T, H, B),
        in_specs=[*[whole] * len(arrays), *[row] * len(statistics), numbers, scalar, scalar, *words],
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
    visible = (i * T + index)[:, None] >= (j * T + index)[None]
    visible &= numbers[_tile(i, T)][:, None] == numbers[_tile(j, T)][None]
    return jnp.where(visible, s_TxT, MASK_VALUE)


def _dropped(tiling: _Tiling, arrays_TxT: tuple[Array, ...], words: Any, i: Any, j: Any) -> tuple[Array, ...]:
    """Multiplies arrays of tile (i, j) by the factors of dropout."""
    if tiling.masks is None:
        return arrays_TxT
    T = tiling.tile
    factors_TxT = mask_factors(tiling.masks, words, T, i * T, j * T)
    return tuple(x_TxT * factors_TxT for x_TxT in arrays_TxT)


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
        (kept_TxT,) = _dropped(tiling, (p_TxT,), words, i, j)
        acc_TxK = acc_TxK * rescale_T[:, None] + _dot(tiling, kept_TxT.astype(v_TxK.dtype), v_TxK, (1, 0))
        return new_max_T, sum_T * rescale_T + jnp.sum(p_TxT, axis=1), acc_TxK

    init = jnp.full((T,), MASK_VALUE, jnp.float32), jnp.zeros((T,), jnp.float32), jnp.zeros(q_TxK.shape, jnp.float32)
    max_T, sum_T, acc_TxK = lax.fori_loop(first[...], i + 1, step, init)
    out[...] = (acc_TxK / sum_T[:, None]).astype(out.dtype)
    lse[...] = max_T + jnp.log2(sum_T)


def _slopes(tiling: _Tiling, refs: tuple[Any, ...], tiles_TxK: tuple[Array, ...], i: Any, j: Any) -> Any:
    """Returns the weights of tile (i, j) and the gradient of its scores without the scale, both (T, T) float32."""
    lse, delta, numbers, *words = refs
    q_TxK, k_TxK, v_TxK, dout_TxK = tiles_TxK
    s_TxT = _scores(tiling, q_TxK, k_TxK, numbers, i, j)
    p_TxT = jnp.exp2(s_TxT - lse[_tile(i, tiling.tile)][:, None])
    kept_TxT, dp_TxT = _dropped(tiling, (p_TxT, _dot(tiling, dout_TxK, v_TxK, (1, 1))), words, i, j)
    return kept_TxT, p_TxT * (dp_TxT - delta[_tile(i, tiling.tile)][:, None])


def _key_kernel(tiling: _Tiling, q: Any, k: Any, v: Any, dout: Any, *refs: Any) -> None:
    lse, delta, numbers, _, last, *words, dk, dv = refs
    T, j = tiling.tile, _own_tile()
    k_TxK, v_TxK = k[_tile(j, T), :], v[_tile(j, T), :]

    def step(i: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        q_TxK, dout_TxK = q[_tile(i, T), :], dout[_tile(i, T), :]
        p_TxT, ds_TxT = _slopes(tiling, (lse, delta, numbers, *words), (q_TxK, k_TxK, v_TxK, dout_TxK), i, j)
        dv_TxK = sums[1] + _dot(tiling, p_TxT.astype(dout_TxK.dtype), dout_TxK, (0, 0))
        return sums[0] + _dot(tiling, ds_TxT.astype(q_TxK.dtype), q_TxK, (0, 0)), dv_TxK

    zeros = jnp.zeros(k_TxK.shape, jnp.float32)
    dk_TxK, dv_TxK = lax.fori_loop(j, last[...] + 1, step, (zeros, zeros))
    dk[...] = (tiling.scale * dk_TxK).astype(dk.dtype)
    dv[...] = dv_TxK.astype(dv.dtype)


def _query_kernel(tiling: _Tiling, q: Any, k: Any, v: Any, dout: Any, *refs: Any) -> None:
    lse, delta, numbers, first, _, *words, dq = refs
    T, i = tiling.tile, _own_tile()
    q_TxK, dout_TxK = q[_tile(i, T), :], dout[_tile(i, T), :]

    def step(j: Any, dq_TxK: Array) -> Array:
        k_TxK, v_TxK = k[_tile(j, T), :], v[_tile(j, T), :]
        _, ds_TxT = _slopes(tiling, (lse, delta, numbers, *words), (q_TxK, k_TxK, v_TxK, dout_TxK), i, j)
        return dq_TxK + _dot(tiling, ds_TxT.astype(k_TxK.dtype), k_TxK, (1, 0))

    dq_TxK = lax.fori_loop(first[...], i + 1, step, jnp.zeros(q_TxK.shape, jnp.float32))
    dq[...] = (tiling.scale * dq_TxK).astype(dq.dtype)


# --- example for the check on a device ------------------------------------------------------------------


def _cases(attend: Callable[..., Array]) -> Callable[..., Array]:
    """Returns the results in float32, in bf16 and in bf16 with dropout as one array.

    Those of bf16 are scaled by the ratio of the tolerances.
    """

    def run(q: Array, k: Array, v: Array, segment_ids_BxL: Array) -> Array:
        low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
        dropped = attend(*low, segment_ids_BxL, Dropout(jax.random.key(0), 0.1))
        coarse = (x.astype(jnp.float32) / 300 for x in (attend(*low, segment_ids_BxL, NO_DROPOUT), dropped))
        return jnp.stack([attend(q, k, v, segment_ids_BxL, NO_DROPOUT), *coarse])

    return run


@kernels.example("attention.triton")
def _example() -> kernels.Example:
    B, L, H, K = 2, 300, 2, 64  # borders of the masks of dropout are not those of the kernel's tiles

    def inputs(key: Array) -> tuple[Array, ...]:
        q, k, v = jax.random.normal(key, (3, B, L, H, K), jnp.float32)
        index = jnp.arange(L)
        return q, k, v, jnp.stack([index // 100 + 1, jnp.where(index < 250, index // 64 + 1, 0)])

    def attend(q: Array, k: Array, v: Array, segment_ids_BxL: Array, dropout: Dropout) -> Array:
        words = None if dropout.key is None else mask_words(dropout.key, B, H, L)
        return triton_attention(q, k, v, segment_ids_BxL, words, dropout_rate=dropout.rate)

    return kernels.Example(_cases(attend), _cases(exact_attention), inputs, 1e-4)
