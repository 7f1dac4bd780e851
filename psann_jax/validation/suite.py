"""The checks, in the order of their numbers."""

from psann_jax.validation.basics import ENVIRONMENT, PRECISION
from psann_jax.validation.check import Check
from psann_jax.validation.decoding import GENERATION
from psann_jax.validation.parallel import DATA_PARALLEL, MODEL_PARALLEL
from psann_jax.validation.resuming import RESUME
from psann_jax.validation.speed import MEMORY, THROUGHPUT

CHECKS: dict[str, Check] = {
    check.id: check
    for check in (
        ENVIRONMENT,
        PRECISION,
        THROUGHPUT,
        MEMORY,
        DATA_PARALLEL,
        MODEL_PARALLEL,
        GENERATION,
        RESUME,
    )
}
