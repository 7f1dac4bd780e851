"""Restarts a command in an environment that makes it faster, which libraries read only when a program starts."""

import os
import sys

from psann_jax.utils.huge_pages import pages_on_request, with_huge_pages
from psann_jax.utils.processor_flags import accepted_by_jaxlib, with_processor_flags


def restart_tuned() -> None:
    """Restarts this program, with the same arguments, with huge pages and the processor's XLA flags.

    Does nothing after such a restart, or where neither has an effect or the user forbids it; see
    `psann_jax.utils.huge_pages` and `psann_jax.utils.processor_flags`.
    """
    before = dict(os.environ)
    environment = (with_huge_pages(before) if pages_on_request() else None) or before
    environment = with_processor_flags(environment, accepted_by_jaxlib) or environment
    if environment != before:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
