"""What runs jobs: `psann_jax.engines.local.LocalEngine` on this machine, or `psann_jax.engines.cluster.RayEngine`."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol, TypeVar

from psann_jax.engines.place import Place

K = TypeVar("K", bound=Hashable)
K_contra = TypeVar("K_contra", bound=Hashable, contravariant=True)
Job = Callable[[Place], str | None]  # returns its error, or None


class Watch(Protocol[K_contra]):
    """What is called while jobs run, always in the thread that called `Engine.run`."""

    def started(self, key: K_contra) -> None:
        """Called before a job starts, if the engine knows when that is."""

    def refresh(self) -> None:
        """Called a few times a second."""

    def ended(self, key: K_contra, error: str | None) -> None:
        """Called after a job with what it returned, but not after a request to stop."""


class NoWatch:
    """A `Watch` that does nothing."""

    def started(self, key: Any) -> None:
        """See `Watch`."""

    def refresh(self) -> None:
        """See `Watch`."""

    def ended(self, key: Any, error: str | None) -> None:
        """See `Watch`."""


class Engine(Protocol):
    """Runs jobs, several at once if it can."""

    def at_once(self, n_jobs: int) -> bool:
        """Returns whether any of so many jobs run side by side, so that their output goes to log files."""

    def run(self, jobs: Mapping[K, Job], watch: Watch[K]) -> None:
        """Runs jobs, in this order as far as they wait for each other.

        Args:
          jobs: what to call, by key, with the part of the machine that the job may use.
          watch: is called while they run.

        Raises:
          KeyboardInterrupt: SIGINT was received; all jobs have saved their state.
          SystemExit: the same for another stop signal.
          UserError: the jobs cannot run here.
          Exception: what a job or `watch` raised; the other jobs have saved their state.
        """
