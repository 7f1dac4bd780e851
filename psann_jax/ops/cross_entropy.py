"""Cross entropy over a vocabulary, without ever storing the logits of a whole batch."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops import kernels
from psann_jax.ops.window_parts import parts_as_rows, rows_as_parts

# Tokens per chunk and device: few on a CPU, to fit its caches; elsewhere enough to fill the matrix units.
_CPU_CHUNK, _ACCELERATOR_CHUNK = 512, 4096
# Scales fp16 gradients of logits, most of which are below the smallest normal fp16 number, before a matmul.
_FP16_SCALE = 256.0


class LossOptions(NamedTuple):
    """Terms of the loss beside the cross entropy, and the bound of the logits.

    Attributes:
      label_smoothing: eps, in [0, 1) (Szegedy et al., "Rethinking the Inception Architecture", 2016).
      z_loss: weight of the squared logsumexp of the logits (Chowdhery et al., "PaLM", 2022).
      softcap: c of `soft_cap`, which bounds the logits before everything else.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0


PLAIN = LossOptions()


def soft_cap(logits: Array, cap: float) -> Array:
    """Computes c * tanh(logits / c), which is between -c and c; the logits themselves if c is 0.

    Source: Gemma Team (2024), "Gemma 2: Improving Open Language Models at a Practical Size".
    """
    return cap * jnp.tanh(logits / cap) if cap else logits


def cross_entropy_reference(
    x_BxLxD: Array,
    kernel_DxV: Array,
    targets_BxL: Array,
    weights_BxL: Array,
    *,
    bias_V: Array | None = None,
    options: LossOptions = PLAIN,
) -> tuple[Array, dict[str, Array]]:
    """Reference for `cross_entropy`: computes all logits at once and is differentiated by JAX."""
    V = kernel_DxV.shape[1]
    eps, wide = options.label_smoothing, jnp.promote_types(x_BxLxD.dtype, jnp.float32)
    kernel_DxV = kernel_DxV.astype(x_BxLxD.dtype)
    logits_BxLxV = jnp.einsum("bld,dv->blv", x_BxLxD, kernel_DxV, preferred_element_type=wide)
    if bias_V is not None:
        logits_BxLxV = logits_BxLxV + bias_V[None, None]
    logits_BxLxV = soft_cap(logits_BxLxV, options.softcap)
    logp_BxLxV = jax.nn.log_softmax(logits_BxLxV)
    nll_BxL = -jnp.take_along_axis(logp_BxLxV, jnp.clip(targets_BxL, 0, V - 1)[:, :, None], axis=2)[:, :, 0]
    loss_BxL = (1 - eps) * nll_BxL - eps * logp_BxLxV.mean(2)
    loss_BxL += options.z_loss * jax.nn.logsumexp(logits_BxLxV, axis=2) ** 2
    w_BxL = weights_BxL.astype(wide)
    correct_BxL = logits_BxLxV.argmax(2) == targets_BxL
    stats = {"nll": (w_BxL * nll_BxL).sum(), "correct": (w_BxL * correct_BxL).sum(), "weight": w_BxL.sum()}
    stats |= {"nll_B": (w_BxL * nll_BxL).sum(1), "weight_B": w_BxL.sum(1), "nll_BxL": jnp.where(w_BxL == 0, 0, nll_BxL)}
    return (w_BxL * loss_BxL).sum(), jax.lax.stop_gradient(stats)


def cross_entropy(
    x_BxLxD: Array,
    kernel_DxV: Array,
    targets_BxL: Array,
    weights_BxL: Array,
    *,
    bias_V: Array | None = None,
    options: LossOptions = PLAIN,
    chunk_tokens: int | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Sums the cross entropy between softmax(soft_cap(x @ kernel + bias)) and the targets over tokens, weighted.

    Per token: (1 - eps) * nll + eps * mean_v(-log p_v) + z_loss * logsumexp^2, with eps, z_loss and
    the softcap of `options`.

    Only the logits of `chunk_tokens` tokens exist at a time, in float32. When differentiated, the forward pass
    computes the gradients of x, kernel and bias chunk by chunk, so that logits are computed once, and the backward
    pass only scales them. Without differentiation it does no gradient work. The gradients are those of the sum, not
    of a mean, so they do not underflow in fp16; the factors of a mean and of loss scaling are applied in float32.

    Args:
      x_BxLxD: last hidden states, bf16, fp16, float32 or float64 (then everything is float64).
      kernel_DxV: cast to the type of x for the matmuls. Its gradient is summed in float32 and returned in the kernel's
        own type, so a float32 master kernel gets a float32 gradient.
      targets_BxL: token ids. An id outside [0, V) makes the loss NaN, unless its weight is 0.
      weights_BxL: weight per token; 0 ignores the token. Differentiable.
      bias_V: added to the logits.
      options: label smoothing, z-loss and softcap.
      chunk_tokens: tokens per chunk over all devices, rounded so that a chunk has all rows of the batch. The default
        is 512 per CPU device and 4096 per other device. On CPUs, the gradient of the kernel is summed over devices
        once per chunk, elsewhere once over those along data and context.

    Returns:
      The weighted sum of losses, float32, and statistics that are not differentiated: `nll`, the weighted sum of
      -log p(target); `correct`, the summed weights of tokens whose target has a higher logit than every other id (a
      tie counts as wrong); `weight`, the sum of the weights; `nll_B` and `weight_B`, two of these by row; and
      `nll_BxL`, -log p(target) of every token, unweighted, 0 for tokens of weight 0.
    """
    B, L, _ = x_BxLxD.shape
    if chunk_tokens is None:
        per_device = _CPU_CHUNK if kernels.platform() == "cpu" else _ACCELERATOR_CHUNK
        chunk_tokens = kernels.device_count() * per_device
    parts = kernels.window_parts()
    n_chunks = math.ceil(L // parts / max(1, chunk_tokens // (B * parts)))
    # The devices of a CPU are simulated: fewer sums over them save nothing, and the order of sums stays as it was.
    replicas = 1 if kernels.platform() == "cpu" or n_chunks == 1 else kernels.replicas()
    groups = replicas if B * parts % replicas == 0 else 1
    static = _Options(*options, n_chunks, parts, groups)
    return _cross_entropy(static, x_BxLxD, kernel_DxV, bias_V, targets_BxL, weights_BxL)


class _Options(NamedTuple):
    label_smoothing: float
    z_loss: float
    softcap: float
    n_chunks: int
    parts: int  # of a window, on different devices
    groups: int  # of successive rows of a chunk, on different devices, whose gradients are added after the last chunk


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
    options: _Options, x_BxLxD: Array, kernel_DxV: Array, bias_V: Array | None, targets_BxL: Array, weights_BxL: Array
) -> tuple[Array, dict[str, Array]]:
    tokens, _ = _scan_chunks(options, x_BxLxD, kernel_DxV, bias_V, targets_BxL, weights_BxL, with_gradients=False)
    return _totals(tokens, weights_BxL)


def _forward(
    options: _Options, x_BxLxD: Array, kernel_DxV: Array, bias_V: Array | None, targets_BxL: Array, weights_BxL: Array
) -> tuple[Any, Any]:
    tokens, gradients = _scan_chunks(
        options, x_BxLxD, kernel_DxV, bias_V, targets_BxL, weights_BxL, with_gradients=True
    )
    like = tuple(None if a is None else jnp.zeros((), a.dtype) for a in (x_BxLxD, kernel_DxV, bias_V))
    return _totals(tokens, weights_BxL), (gradients, like, tokens["loss"], weights_BxL)


def _backward(_: _Options, saved: Any, cotangent: tuple[Array, Any]) -> tuple[Array | None, ...]:
    gradients, like, loss_BxL, weights_BxL = saved
    scale = cotangent[0]
    dx, dkernel, dbias = (
        None if a is None else (scale * g).astype(a.dtype) for g, a in zip(gradients, like, strict=True)
    )
    return dx, dkernel, dbias, None, (scale * loss_BxL).astype(weights_BxL.dtype)


_cross_entropy.defvjp(_forward, _backward)


def _totals(tokens: dict[str, Array], weights_BxL: Array) -> tuple[Array, dict[str, Array]]:
    weights_BxL = weights_BxL.astype(tokens["loss"].dtype)
    sums = {name: (weights_BxL * value).sum() for name, value in tokens.items()}
    rows = {"nll_B": (weights_BxL * tokens["nll"]).sum(1), "weight_B": weights_BxL.sum(1)}
    rows["nll_BxL"] = jnp.where(weights_BxL == 0, 0, tokens["nll"])
    return sums["loss"], {"nll": sums["nll"], "correct": sums["correct"], "weight": weights_BxL.sum(), **rows}


def _scan_chunks(
    options: _Options,
    x_BxLxD: Array,
    kernel_DxV: Array,
    bias_V: Array | None,
    targets_BxL: Array,
    weights_BxL: Array,
    *,
    with_gradients: bool,
) -> tuple[dict[str, Array], tuple[Array, Array, Array | None] | None]:
    """Returns loss, nll and correctness per token, (B, L), and the gradients of x, kernel and bias, if asked for."""
    B, L = x_BxLxD.shape[0] * options.parts, x_BxLxD.shape[1] // options.parts
    n = options.n_chunks
    dtype, wide = x_BxLxD.dtype, jnp.promote_types(x_BxLxD.dtype, jnp.float32)
    w_DxV = kernel_DxV.astype(dtype)
    length = math.ceil(L / n)

    # A chunk has all rows of the batch and some positions of each part of a window, so that nothing that is sharded
    # over devices is moved. Parts count as rows here.
    def split(a: Array) -> Array:
        a = parts_as_rows(a, options.parts)
        a = jnp.pad(a, [(0, 0), (0, n * length - L)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(B, n, length, *a.shape[2:]), 1, 0).reshape(n, B * length, *a.shape[2:])

    def join(a: Array) -> Array:
        a = jnp.moveaxis(a.reshape(n, B, length, *a.shape[2:]), 0, 1).reshape(B, n * length, *a.shape[2:])[:, :L]
        return rows_as_parts(a, options.parts)

    def chunk(sums: Any, inputs: Any) -> tuple[Any, Any]:
        x_RxD, targets_R, weights_R = inputs
        logits_RxV = jnp.dot(x_RxD, w_DxV, preferred_element_type=wide)
        if bias_V is not None:
            logits_RxV = logits_RxV + bias_V[None]
        logits_RxV = soft_cap(logits_RxV, options.softcap)
        tokens, dlogits_RxV = _token_losses(options, logits_RxV, targets_R, weights_R)
        if not with_gradients:
            return None, (tokens, None)
        if options.softcap:
            dlogits_RxV *= 1 - jnp.square(logits_RxV / options.softcap)
        dkernel, dbias = sums
        scale = _FP16_SCALE if dtype == jnp.float16 else 1.0
        d_RxV = (scale * dlogits_RxV).astype(dtype)
        dx_RxD = jnp.dot(d_RxV, w_DxV.T, preferred_element_type=wide) / scale
        # The barrier makes XLA's CPU backend copy the small transposed operand; without the copy the product takes 1.7
        # times as long.
        xT = jax.lax.optimization_barrier(grouped(x_RxD).swapaxes(-1, -2))
        dkernel = dkernel + jnp.matmul(xT, grouped(d_RxV), preferred_element_type=wide) / scale
        dbias = None if bias_V is None else dbias + grouped(dlogits_RxV).sum(-2)
        return (dkernel, dbias), (tokens, dx_RxD.astype(dtype))

    groups = () if options.groups == 1 else (options.groups,)

    def grouped(a_RxF: Array) -> Array:
        return a_RxF.reshape(*groups, -1, a_RxF.shape[1])

    zeros: Any = None
    if with_gradients:
        zeros = jax.tree.map(lambda a: jnp.zeros((*groups, *a.shape), wide), (kernel_DxV, bias_V))
    sums, (tokens, dx) = jax.lax.scan(chunk, zeros, tuple(map(split, (x_BxLxD, targets_BxL, weights_BxL))))
    if not with_gradients:
        return jax.tree.map(join, tokens), None
    dkernel, dbias = jax.tree.map(lambda a: a.sum(0), sums) if groups else sums
    return jax.tree.map(join, tokens), (join(dx), dkernel, dbias)


def _token_losses(
    options: _Options, logits_RxV: Array, targets_R: Array, weights_R: Array
) -> tuple[dict[str, Array], Array]:
    """Returns loss, nll and correctness per token, and the gradient of the weighted sum of losses by the logits."""
    V = logits_RxV.shape[1]
    eps, z_loss = options.label_smoothing, options.z_loss
    weights_R = weights_R.astype(logits_RxV.dtype)
    valid_R = (targets_R >= 0) & (targets_R < V)
    is_target_RxV = jnp.arange(V)[None] == targets_R[:, None]
    target_R = jnp.take_along_axis(logits_RxV, jnp.clip(targets_R, 0, V - 1)[:, None], axis=1)[:, 0]
    target_R = jnp.where(valid_R | (weights_R == 0), target_R, jnp.nan)
    correct_R = valid_R & (target_R > jnp.where(is_target_RxV, -jnp.inf, logits_RxV).max(1))

    max_R = logits_RxV.max(1)
    exp_RxV = jnp.exp(logits_RxV - max_R[:, None])
    sum_R = exp_RxV.sum(1)
    log_sum_R = jnp.log(sum_R)
    lse_R = max_R + log_sum_R
    nll_R = log_sum_R - (target_R - max_R)  # lse - target would have only the digits of the largest logit
    loss_R = (1 - eps) * nll_R + z_loss * lse_R**2
    dlogits_RxV = exp_RxV * (weights_R * (1 + 2 * z_loss * lse_R) / sum_R)[:, None]
    dlogits_RxV -= jnp.where(is_target_RxV, ((1 - eps) * weights_R)[:, None], 0)
    if eps:
        loss_R += eps * (lse_R - logits_RxV.mean(1))
        dlogits_RxV -= (eps / V * weights_R)[:, None]
    return {"loss": loss_R, "nll": nll_R, "correct": correct_R}, dlogits_RxV
