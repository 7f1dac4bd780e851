"""Look-ups in tables of parameters."""

from functools import partial

import jax
import jax.numpy as jnp

from psann_jax.nn.partition import constrain
from psann_jax.ops.mixed_precision import look_up


def embed(table_VxD: jax.Array, ids: jax.Array, dtype: jnp.dtype, axis: str | None = "vocab") -> jax.Array:
    """Looks up rows (*ids.shape, D), in `dtype`; the gradient of the table is summed in the type of the table.

    The table is gathered over fsdp first: XLA replicates the result of a look-up in a table with sharded columns.

    Args:
      table_VxD: the table.
      ids: integers of any shape.
      dtype: of the result.
      axis: logical axis of the rows.
    """
    return look_up(table_VxD, ids, dtype, partial(_with_whole_rows, axis))


def _with_whole_rows(axis: str | None, table_VxD: jax.Array) -> jax.Array:
    return constrain(table_VxD, axis, None)
