"""Comparison of kernels of attention with the plain implementation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.ops.attention import causal_attention
from psann_jax.ops.tiles import NO_DROPOUT


def plain(q, k, v, segment_ids, window=0, dropout=NO_DROPOUT):
    """The reference, with the arguments of a kernel."""
    options = {"window": window, "dropout": dropout, "implementation": "plain"}
    return causal_attention(q, k, v, segment_ids_BxL=segment_ids, **options)


def value_and_gradients(attend, segment_ids, q, k, v, dout):
    """Returns the output and the gradients of queries, keys and values, compiled."""

    @jax.jit
    def run(q, k, v, dout):
        out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, segment_ids), q, k, v)
        return out, vjp(dout)

    return run(q, k, v, dout)


def compare_with_plain(attend, inputs, segment_ids, dtype, tolerance, window=0, dropout=NO_DROPOUT):
    """Compares values and gradients with those that float32 gives for the same inputs.

    Args:
      attend: a kernel.
      inputs: q, k, v and the gradient of the output.
      segment_ids: (B, L), or None.
      dtype: of the kernel's arrays.
      tolerance: of the largest difference, as a fraction of the largest absolute value, or of 1.
      window: tokens that a query sees; 0: all.
      dropout: of the reference's weights; the kernel has its own.
    """
    inputs = [jnp.asarray(a, dtype) for a in inputs]
    got = value_and_gradients(partial(attend, window=window), segment_ids, *inputs)
    reference = partial(plain, window=window, dropout=dropout)
    want = value_and_gradients(reference, segment_ids, *(a.astype("float32") for a in inputs))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.asarray(a, "float32"), b, atol=tolerance * max(1, np.abs(b).max()))


def at_borders(length, tile):
    """Segment ids of two rows with borders on, before and after a tile's, documents of one token, and padding."""
    index = np.arange(length)
    borders = [[tile - 1, tile, tile + 1, 2 * tile], [1, 2 * tile - 1, 2 * tile + 1]]
    segment_ids = np.stack([1 + np.searchsorted(b, index, "right") for b in borders]).astype("int32")
    segment_ids[1, -(length // 8) :] = 0
    return segment_ids


def check_example(example, kernel):
    """Compares values and gradients with the reference, as the check on a device does, with some room.

    Args:
      example: a `kernels.Example`.
      kernel: what takes the place of its kernel on a CPU.
    """
    inputs = example.inputs(jax.random.key(0))
    n = sum(jnp.issubdtype(a.dtype, jnp.floating) for a in inputs)

    def run(attend, *inputs):
        out, vjp = jax.vjp(lambda *arrays: attend(*arrays, *inputs[n:]), *inputs[:n])
        return out, *vjp(jax.random.normal(jax.random.key(1), out.shape, out.dtype))

    results = (jax.jit(partial(run, attend))(*inputs) for attend in (kernel, example.reference))
    for got, want in zip(*results, strict=True):
        got, want = np.asarray(got, "float32"), np.asarray(want, "float32")
        np.testing.assert_allclose(got, want, atol=0.8 * example.tolerance * np.abs(want).max())
