"""The scaling of Adafactor with a moment that is factored for each matrix of a stack by itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_LEAST = 128  # smaller matrices keep the whole second moment, as in `optax.scale_by_factored_rms`
_EPS = 1e-30
_DECAY_POWER = 0.8


class _Result(NamedTuple):
    update: jax.Array
    v_row: jax.Array
    v_col: jax.Array
    v: jax.Array


def scale_by_factored_rms(stacked: Any) -> optax.GradientTransformation:
    """Divides gradients by the root of their second moment, factored into row and column means for large matrices.

    Source: Shazeer and Stern (2018), "Adafactor", algorithms 4 and 5, with the decay 1 - t^-0.8. The transformation of
    the same name in optax factors over the two largest axes, of which one is the layer axis of a deep stack; here the
    layer axis is never one of them. The state has the type of optax.

    Args:
      stacked: whether the first axis of a parameter counts layers, in the structure of the parameters.
    """
    is_stacked = dict(jax.tree_util.tree_leaves_with_path(stacked))

    def init(params: Any) -> optax.FactoredState:
        def init_one(path: Any, param: jax.Array) -> _Result:
            none = jnp.zeros((1,), param.dtype)
            axes = factored_axes(param.shape, is_stacked[path])
            if axes is None:
                return _Result(none, none, none, jnp.zeros_like(param))
            row, column = (jnp.zeros_like(jax.eval_shape(lambda p, axis=a: p.sum(axis), param)) for a in axes[::-1])
            return _Result(none, row, column, none)

        return _state(jnp.zeros((), jnp.int32), jax.tree_util.tree_map_with_path(init_one, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.FactoredState]:
        decay = 1 - (state.count + 1).astype(jnp.float32) ** -_DECAY_POWER

        def update_one(path: Any, grad: jax.Array, v_row: jax.Array, v_col: jax.Array, v: jax.Array) -> _Result:
            moments = _Result(grad, v_row, v_col, v)
            return _update(moments, factored_axes(grad.shape, is_stacked[path]), decay)

        results = jax.tree_util.tree_map_with_path(update_one, updates, state.v_row, state.v_col, state.v)
        scaled = jax.tree.map(lambda r: r.update, results, is_leaf=_is_result)
        return scaled, _state(optax.safe_increment(state.count), results)

    return optax.GradientTransformation(init, update)


def factored_axes(shape: tuple[int, ...], stacked: bool) -> tuple[int, int] | None:
    """Returns the largest two axes of each layer's array, the smaller first; None if the moment is not factored."""
    first = 1 if stacked else 0
    axes = sorted(range(first, len(shape)), key=lambda axis: shape[axis])[-2:]
    return (axes[0], axes[1]) if len(axes) == 2 and shape[axes[0]] >= _LEAST else None


def _update(old: _Result, axes: tuple[int, int] | None, decay: jax.Array) -> _Result:
    """Returns the scaled gradient and the new moments; `old.update` is the gradient."""
    grad = old.update
    square = jnp.square(grad) + _EPS
    if axes is None:
        v = decay * old.v + (1 - decay) * square
        return old._replace(update=grad * v**-0.5, v=v)
    smaller, larger = axes
    v_row = decay * old.v_row + (1 - decay) * square.mean(larger)
    v_col = decay * old.v_col + (1 - decay) * square.mean(smaller)
    # The axis of the rows in v_row, from which the axis `larger` is missing.
    mean = v_row.mean(smaller - (larger < smaller), keepdims=True)
    row, column = jnp.expand_dims((v_row / mean) ** -0.5, larger), jnp.expand_dims(v_col**-0.5, smaller)
    return _Result(grad * row * column, v_row, v_col, old.v)


def _state(count: Any, results: Any) -> optax.FactoredState:
    v_row, v_col, v = (
        jax.tree.map(lambda r, name=name: getattr(r, name), results, is_leaf=_is_result)
        for name in ("v_row", "v_col", "v")
    )
    return optax.FactoredState(count=count, v_row=v_row, v_col=v_col, v=v)


def _is_result(node: Any) -> bool:
    return isinstance(node, _Result)
