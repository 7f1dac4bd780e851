"""A plain interpreter of JAX's wrapper of cuDNN for packed documents."""

from functools import partial

import jax
import jax.numpy as jnp
from jax._src.cudnn.fused_attention_stablehlo import MaskType


def interpreter(
    query, key, value, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type, sliding_window_length
):
    """Attends causally within the documents of a layout; NaN for tokens of none, as cuDNN leaves them undefined.

    A query sees the last `sliding_window_length` tokens up to its own, or all (None), as JAX's function says.

    All results are NaN if the layout is not one that cuDNN understands.
    """
    assert mask_type is MaskType.PADDING_CAUSAL
    assert q_seqlen is kv_seqlen
    assert q_offsets is kv_offsets
    assert query.shape[1] % 2 == 0  # JAX checks it where it differentiates
    B, M = q_seqlen.shape
    assert q_offsets.shape == (B, M + 1)
    assert q_seqlen.dtype == q_offsets.dtype == jnp.int32
    assert sliding_window_length is None or 0 < sliding_window_length < query.shape[1]
    return _attend(sliding_window_length or query.shape[1], query, key, value, q_seqlen, q_offsets, scale)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(window, q, k, v, lengths, offsets, scale):
    return _masked(window, q, k, v, lengths, offsets, scale)


def _documents(q, lengths, offsets):
    """Returns the document of each token, -1 if it is in none; -2 for all if the layout is not valid."""
    index = jnp.arange(q.shape[1])[None, :, None]
    starts = offsets[:, None, :-1]
    inside = (index >= starts) & (index < starts + lengths[:, None]) & (starts >= 0)
    found = jnp.where(inside.any(2), inside.argmax(2), -1)
    # As many lengths as offsets in each row, in order, without overlap; no length 0.
    valid = ((lengths > 0) == (offsets[:, :-1] >= 0)).all() & (lengths != 0).all() & (offsets[:, -1] == -1).all()
    valid &= (inside.sum(2) <= 1).all() & (jnp.diff((lengths > 0).astype(int), axis=1) <= 0).all()
    return jnp.where(valid, found, -2)


def _masked(window, q, k, v, lengths, offsets, scale):
    document = _documents(q, lengths, offsets)
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    lag = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
    seen = (document[:, :, None] == document[:, None]) & ((lag >= 0) & (lag < window))[None]
    scores = scale * jnp.einsum("blhk,bshk->bhls", q, k, preferred_element_type=jnp.float32)
    p = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf)).astype(q.dtype)
    out = jnp.einsum("bhls,bshk->blhk", p, v)
    return jnp.where((document >= 0)[:, :, None, None], out, jnp.nan)


def _forward(window, q, k, v, lengths, offsets, scale):
    out = _masked(window, q, k, v, lengths, offsets, scale)
    return out, (q, k, v, lengths, offsets, scale, out)


def _backward(window, saved, dout):
    q, k, v, lengths, offsets, scale, out = saved
    known = (_documents(q, lengths, offsets) >= 0)[:, :, None, None]
    attend = lambda q, k, v: jnp.where(known, _masked(window, q, k, v, lengths, offsets, scale), 0)  # noqa: E731
    gradients = jax.vjp(attend, q, k, v)[1](jnp.where(known, dout, 0))
    # Reads the saved output, as cuDNN does, so that a wrong one shows.
    same = jnp.where(known, out == _masked(window, q, k, v, lengths, offsets, scale), True).all()
    return (*(jnp.where(known & same, g, jnp.nan) for g in gradients), None, None, None)


_attend.defvjp(_forward, _backward)
