"""Parameters of equal layers, which are stacked along a leading axis, as one array for each layer."""

from typing import Any

import jax
import jax.numpy as jnp


def unstacked(x: jax.Array) -> list[jax.Array]:
    """Returns the elements of the leading axis; indexing would have a sum of stacks as its gradient."""
    return [part.reshape(x.shape[1:]) for part in jax.lax.split(x, (1,) * x.shape[0])]


def indexed(x: jax.Array) -> list[jax.Array]:
    """Returns the elements of the leading axis, with a sum of stacks as the gradient."""
    return [x[i] for i in range(len(x))]


def split_layers(stacked: Any, infos: Any) -> Any:
    """Returns a tree in which the arrays of stacked parameters are lists with an array for each layer.

    Args:
      stacked: arrays in the structure of the parameters.
      infos: the `ParamInfo` of each.
    """
    return jax.tree.map(lambda info, x: unstacked(x) if "layers" in info.axes[:1] else x, infos, stacked)


def join_layers(split: Any, infos: Any) -> Any:
    """Inverts `split_layers`."""
    return jax.tree.map(lambda info, x: jnp.stack(x) if "layers" in info.axes[:1] else x, infos, split)
