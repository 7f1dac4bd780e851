"""Where the documents of packed windows begin and end, for kernels of attention.

A document is a run of equal segment ids in a row; padding (segment 0) is one too. An id that appears again after
another one begins a new document, as for `psann_jax.nn.positions.document_reach`.
"""

import jax.numpy as jnp
from jax import Array


def document_numbers(segment_ids_BxL: Array) -> Array:
    """Numbers the documents of each row 0, 1, 2, ...; returns the number of each token's, (B, L) int32."""
    changes = segment_ids_BxL[:, 1:] != segment_ids_BxL[:, :-1]
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def lengths_and_starts(numbers_BxL: Array, first: Array | int, n: int) -> tuple[Array, Array]:
    """Returns the lengths and first tokens of n documents of each row, each (B, n) int32, -1 where there is none.

    Args:
      numbers_BxL: from `document_numbers`.
      first: number of the first of the n documents.
      n: how many documents to describe.
    """
    # A count of the tokens before each document, because a scatter of their borders would be slower on accelerators.
    edge_M = first + jnp.arange(n + 1, dtype=jnp.int32)
    edges_BxM = jnp.sum(numbers_BxL[:, :, None] < edge_M, axis=1, dtype=jnp.int32)
    starts, lengths = edges_BxM[:, :-1], jnp.diff(edges_BxM, axis=1)
    present = lengths > 0
    return jnp.where(present, lengths, -1), jnp.where(present, starts, -1)
