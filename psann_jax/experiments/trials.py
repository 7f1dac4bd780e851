"""The trials of a sweep's tuning stage, and the settings that they choose."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ml_collections import config_dict

from psann_jax.config import Config
from psann_jax.experiments.cases import Case, experiment, label, sizes
from psann_jax.experiments.outcome import Outcome
from psann_jax.experiments.statistics import ALPHA, Noise, half_width, noise_of_mean
from psann_jax.experiments.sweeps import RUNG
from psann_jax.experiments.text_noise import text_noise
from psann_jax.experiments.tuning import HIGH, LOW, Grid, Settings, Tuning


def trial_cases(sweep: config_dict.ConfigDict, grids: Mapping[str, Grid], overrides: Sequence[str] = ()) -> list[Case]:
    """Returns the trials, those of all contenders with one seed before the next seed.

    Args:
      sweep: from `psann_jax.experiments.sweeps.sweep_config`, with a tuning stage.
      grids: `label` of a contender, with its rung -> the values to combine, for those to tune.
      overrides: see `psann_jax.experiments.cases.all_cases`.

    Raises:
      ConfigError: a value is invalid.
    """
    contenders, tuning = dict(sweep.contenders), sweep.tuning
    cases = []
    for (rung, common), (name, own) in itertools.product(sizes(sweep), contenders.items()):
        grid = grids.get(label(name, rung))
        for settings in () if grid is None else tuning.combinations(name, grid):
            config = experiment(common, name, (*own, *settings), overrides)
            held_out = dataclasses.replace(config, data=config.data.hold_out(tuning.valid_fraction))
            cases += [
                Case(name, (*rung, *settings), seed, "tokens", _with_seed(held_out, seed), stage="tuning")
                for seed in tuning.seeds
            ]
    return sorted(cases, key=lambda case: tuning.seeds.index(case.seed))


def _with_seed(config: Config, seed: int) -> Config:
    seeded = dataclasses.replace(config, seed=seed)
    seeded.check()
    return seeded


@dataclass(frozen=True)
class Candidate:
    """A contender with one of the settings that were tried.

    Attributes:
      settings: the settings.
      outcomes: its trials, one per seed.
    """

    settings: Settings
    outcomes: Sequence[Outcome]

    @property
    def loss(self) -> float:
        """The mean over the seeds of the last validation loss; infinite if a trial diverged."""
        mean = statistics.fmean(o.val_loss for o in self.outcomes)
        return mean if math.isfinite(mean) else math.inf


@dataclass(frozen=True)
class Choice:
    """What the trials chose for a contender, in a sweep with rungs for each of them.

    Attributes:
      contender: its name.
      rung: the rung as a setting; () without rungs.
      candidates: all settings that were tried, the best one first.
      edges: settings whose best value is the lowest or highest that was tried, with `LOW` or `HIGH`.
      tied: candidates whose loss differs from the best one's by no more than the noise that is known.
    """

    contender: str
    rung: Settings
    candidates: Sequence[Candidate]
    edges: tuple[tuple[str, str], ...]
    tied: Sequence[Candidate]

    @property
    def label(self) -> str:
        """The contender with its rung."""
        return label(self.contender, self.rung)

    @property
    def settings(self) -> Settings:
        """The chosen settings."""
        return self.candidates[0].settings


def choose(outcomes: Sequence[Outcome]) -> dict[str, Choice]:
    """Returns the choices by their labels: the lowest mean loss, the first in the grid if several are equal.

    Args:
      outcomes: the trials that have ended; one without a summary diverged.
    """
    groups: dict[tuple[str, Settings], dict[Settings, list[Outcome]]] = {}
    for outcome in outcomes:
        settings = outcome.case.settings
        rung = tuple(setting for setting in settings if setting[0] == RUNG)
        tried = groups.setdefault((outcome.case.contender, rung), {})
        tried.setdefault(settings[len(rung) :], []).append(outcome)
    choices = []
    for of, by_settings in groups.items():
        candidates = sorted((Candidate(*item) for item in by_settings.items()), key=lambda c: c.loss)
        best = candidates[0]
        tied = [c for c in candidates[1:] if _within_noise(c, best)]
        choices.append(Choice(*of, candidates, _edges(best.settings, list(by_settings)), tied))
    return {choice.label: choice for choice in choices}


def _edges(best: Settings, tried: Sequence[Settings]) -> tuple[tuple[str, str], ...]:
    edges = []
    for name, value in best:
        values = {dict(settings)[name] for settings in tried}
        if len(values) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            edges += [(name, end) for end, limit in ((LOW, min(values)), (HIGH, max(values))) if value == limit]
    return tuple(edges)


def noises(a: Candidate, b: Candidate) -> list[Noise]:
    """Returns the known noises of the difference of two candidates' losses.

    They are the choice of the held-out text, and of the seeds if there are several.
    """
    text = text_noise([o.windows for o in a.outcomes], [o.windows for o in b.outcomes])
    pairs = [x.val_loss - y.val_loss for x, y in zip(a.outcomes, b.outcomes, strict=False)]
    return [noise for noise in (noise_of_mean(pairs), text) if noise is not None and noise.variance >= 0]


def _within_noise(candidate: Candidate, best: Candidate) -> bool:
    """Whether the 95 % interval of the difference of two losses, as far as its noises are known, contains zero."""
    difference = candidate.loss - best.loss
    return math.isfinite(difference) and difference <= half_width(noises(candidate, best), ALPHA)


# --- the whole stage ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """The state of the tuning stage.

    Attributes:
      tuning: its definition.
      valid_names: the validation data of the compared runs.
      cases: all trials.
      outcomes: those that have ended; without a summary, a trial diverged or failed.
    """

    tuning: Tuning
    valid_names: Sequence[str]
    cases: Sequence[Case]
    outcomes: Sequence[Outcome]

    @property
    def complete(self) -> bool:
        """Whether every trial has a loss or has diverged."""
        return len(self.outcomes) == len(self.cases) and not any(o.failed for o in self.outcomes)

    def choices(self) -> dict[str, Choice]:
        """Returns what the trials choose, see `choose`; nothing before all trials have ended."""
        return choose(self.outcomes) if self.complete else {}
