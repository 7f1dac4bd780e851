"""Positions: rotary angles, sinusoidal encodings, and the distance to the start of a document."""

import jax
import jax.numpy as jnp

ROPE_BASE = 10000.0


def document_reach(segment_ids_BxL: jax.Array) -> jax.Array:
    """Number of earlier tokens in the document of each token within the window, (B, L) int32."""
    index = jnp.arange(segment_ids_BxL.shape[1], dtype=jnp.int32)
    starts = segment_ids_BxL != jnp.roll(segment_ids_BxL, 1, axis=1)
    starts = starts.at[:, 0].set(True)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def rope_tables(positions_BxL: jax.Array, head_dim: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles, two arrays (B, L, 1, K/2).

    Angles are computed in float32 at least, because bfloat16 rounds positions beyond 256.
    Source: Su et al. (2021).
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    inverse_frequency = ROPE_BASE ** (-jnp.arange(head_dim // 2, dtype=wide) / (head_dim // 2))
    angle = positions_BxL.astype(wide)[..., None, None] * inverse_frequency
    return jnp.cos(angle), jnp.sin(angle)


def rope_tables_2d(
    rows_L: jax.Array, columns_L: jax.Array, head_dim: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the angles of cells on a grid, two arrays (L, 1, K/2): by row, then by column.

    The base of the frequencies is 10, so that the longest period is not much longer than a grid of nine.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    inverse_frequency = 10.0 ** (-jnp.arange(head_dim // 4, dtype=wide) / (head_dim // 4))
    angle = jnp.concatenate([x.astype(wide)[:, None, None] * inverse_frequency for x in (rows_L, columns_L)], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxLxHxK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each pair of neighbouring features (2i, 2i+1) by its rotary angle.

    The result holds the first members of all pairs, then the second ones. Queries and keys are permuted alike, so their
    products equal those in the interleaved order, and contiguous halves are cheaper to write.
    """
    cos, sin = tables
    pairs = x_BxLxHxK.reshape(*x_BxLxHxK.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxK.dtype)


def rotate_halves(x_BxLxHxK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each pair (i, i + K/2) by its rotary angle; `rotate` of features that `halves_first` has ordered."""
    cos, sin = (jnp.concatenate(parts, axis=-1) for parts in ((tables[0],) * 2, (-tables[1], tables[1])))
    # TPUs exchange halves slowly by moving them. A product with a permutation is as exact.
    K = x_BxLxHxK.shape[-1]
    exchange_KxK = jnp.roll(jnp.eye(K, dtype=x_BxLxHxK.dtype), K // 2, axis=1)
    swapped_BxLxHxK = jnp.matmul(x_BxLxHxK, exchange_KxK, precision="highest")
    return (x_BxLxHxK * cos + swapped_BxLxHxK * sin).astype(x_BxLxHxK.dtype)


def halves_first(x: jax.Array, n_heads: int) -> jax.Array:
    """Reorders the last axis, H * K features: in each head first the even ones, then the odd ones."""
    return x.reshape(*x.shape[:-1], n_heads, -1, 2).swapaxes(-1, -2).reshape(x.shape)


def sinusoidal_encoding(positions_BxL: jax.Array, features: int, dtype: jnp.dtype) -> jax.Array:
    """Sines in the even features and cosines in the odd ones, (B, L, D). Source: Vaswani et al. (2017)."""
    wide = jnp.promote_types(dtype, jnp.float32)
    frequency = ROPE_BASE ** (-2.0 * jnp.arange(features // 2, dtype=wide) / features)
    angle = positions_BxL.astype(wide)[..., None] * frequency
    encoding = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return encoding.reshape(*positions_BxL.shape, features).astype(dtype)
