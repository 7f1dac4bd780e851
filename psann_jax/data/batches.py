"""How the rows of a batch are divided over processes."""

from psann_jax.utils.errors import UserError


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """Returns the rows of a batch that a process reads: part p of n equal parts, in order.

    Args:
      batch_size: B, rows over all processes.
      process_index: p.
      process_count: n.

    Raises:
      UserError: n does not divide B.
    """
    if batch_size % process_count:
        raise UserError(
            f"train.batch_tokens: makes batches of {batch_size} rows, which cannot be divided over "
            f"{process_count} processes"
        )
    n_rows = batch_size // process_count
    return slice(process_index * n_rows, (process_index + 1) * n_rows)
