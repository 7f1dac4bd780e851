"""Curricula: which ratings each training step draws from."""

import itertools

from psann_jax.config.sudoku import BUCKETS, PuzzlesConfig

_ALL = tuple(range(len(BUCKETS)))
# Indices into BUCKETS. The study that these come from prints other names for the phases of its reverse curriculum
# ("21+" for 51+ alone, "6+" for 11 and above, "1+", "0+"), because it names them by the lowest rating of a bucket.
_PHASES: dict[str, tuple[tuple[int, ...], ...]] = {
    "reverse": ((4,), (3, 4), (1, 2, 3, 4), _ALL),
    "regular": ((0, 1), (0, 1, 2), (0, 1, 2, 3), _ALL),
    "mixed": (_ALL,),
}


def phases(curriculum: str) -> tuple[tuple[int, ...], ...]:
    """Returns the buckets of each phase of a curriculum: reverse, regular or mixed."""
    return _PHASES[curriculum]


def phase_ends(config: PuzzlesConfig, steps: int) -> tuple[int, ...]:
    """Returns, for each phase of a training of `steps` steps, the number of steps done at its end.

    With the default fractions these are the study's: 14, 28, 42 and 70 thousand of 70 thousand steps; 10, 20, 30 and 50
    of 50; 28, 56, 84 and 140 of 140; 5, 10, 15 and 25 of 25.
    """
    if config.curriculum == "mixed":
        return (steps,)
    return (*(round(steps * fraction) for fraction in itertools.accumulate(config.phases[:-1])), steps)


def active_buckets(config: PuzzlesConfig, step: int, steps: int) -> tuple[int, ...]:
    """Returns the buckets that a step draws from; after `steps` steps, those of the last phase."""
    ends = phase_ends(config, steps)
    phase = sum(step >= end for end in ends[:-1])
    return phases(config.curriculum)[phase]
