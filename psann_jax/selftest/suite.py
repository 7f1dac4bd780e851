"""All checks, in the order of their ids."""

from psann_jax.selftest.basics import ENVIRONMENT, PRECISION
from psann_jax.selftest.check import Check
from psann_jax.selftest.decoding import GENERATION
from psann_jax.selftest.parallel import DATA_PARALLEL, MODEL_PARALLEL
from psann_jax.selftest.resuming import RESUME
from psann_jax.selftest.speed import MEMORY, THROUGHPUT

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
