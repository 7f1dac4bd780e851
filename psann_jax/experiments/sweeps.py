"""What a sweep consists of: contenders x settings x seeds, each under one or several budgets.

A file in configs/sweeps/ returns `sweep_config(...)` from get_config().
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import config_dict

from psann_jax.bench import ours
from psann_jax.bench.random_task import random_task
from psann_jax.bench.random_text import with_vocabulary
from psann_jax.config import Config, require
from psann_jax.config.io import default_config, flatten, nearest, parse, to_dict
from psann_jax.models.network import Network

BUDGETS = ("tokens", "flops", "parameters", "seconds")
Settings = tuple[tuple[str, Any], ...]  # dotted names and values


def sweep_config(
    common: config_dict.ConfigDict,
    contenders: Mapping[str, Mapping[str, Any]],
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    budgets: Sequence[str] = ("tokens",),
) -> config_dict.ConfigDict:
    """A sweep as a config file returns it.

    Args:
      common: the experiment, from `default_config`; what it changes goes to every base that has such a setting.
      contenders: name -> settings by dotted name, model.base among them; the first is the reference.
      grid: setting -> values; every contender is run with every combination.
      seeds: of initial weights, data order and dropout.
      budgets: what is equal for all: tokens, training FLOPs, parameters (by d_mlp) or seconds on this device.
    """
    return config_dict.ConfigDict(
        {
            "common": common,
            "contenders": tuple((name, tuple(settings.items())) for name, settings in contenders.items()),
            "grid": tuple((name, tuple(values)) for name, values in (grid or {}).items()),
            "seeds": tuple(seeds),
            "budgets": tuple(budgets),
        }
    )


@dataclass(frozen=True)
class Case:
    """One run of a sweep.

    Attributes:
      contender: its name.
      settings: of the grid.
      seed: of the run.
      budget: what is equal for all.
      config: the experiment.
    """

    contender: str
    settings: Settings
    seed: int
    budget: str
    config: Config

    @property
    def group(self) -> tuple[str, Settings, str]:
        """What the seeds are averaged over."""
        return self.contender, self.settings, self.budget

    @property
    def name(self) -> str:
        """Of its folder."""
        values = [f"{name.split('.')[-1]}{value}" for name, value in self.settings]
        budget = [] if self.budget == "tokens" else [self.budget]
        return "_".join([self.contender, *values, *budget, f"seed{self.seed}"])


def all_cases(
    sweep: config_dict.ConfigDict,
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    speed: Callable[[Config], float] | None = None,
) -> list[Case]:
    """The runs of a sweep, seed by seed, so that an interrupted one has compared something.

    Args:
      sweep: from `sweep_config`.
      only: names of contenders; (): all.
      seeds: others than the sweep's; (): those.
      speed: tokens/s of a config on this device, for the budget of seconds.

    Raises:
      ConfigError: an unknown contender, setting or budget, an empty sweep, or a value that cannot be used.
    """
    contenders, grid = dict(sweep.contenders), dict(sweep.grid)
    for name in only:
        require(name in contenders, "--bases", f"{name!r} is no contender{nearest(name, contenders)}")
    chosen_seeds = tuple(seeds) or tuple(sweep.seeds)
    require(bool(contenders) and bool(chosen_seeds), "contenders", "and seeds must not be empty")
    for name, values in grid.items():
        require(bool(values), f"grid.{name}", "is empty")
    for budget in sweep.budgets:
        require(budget in BUDGETS, "budgets", f"{budget!r} is unknown{nearest(budget, BUDGETS)}")
    combinations = [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    cases = []
    for budget, settings in itertools.product(sweep.budgets, combinations):
        reference = None
        for name, own in contenders.items():
            config = _experiment(sweep.common, name, (*own, *settings))
            reference = reference or config
            same_task = type(config.data) is type(reference.data)
            require(same_task, f"contenders.{name}", f"has another task than {next(iter(contenders))}")
            if not only or name in only:
                fitted = _matched(config, reference, budget, speed)
                cases += [Case(name, settings, seed, budget, _with(fitted, {"seed": seed})) for seed in chosen_seeds]
    return sorted(cases, key=lambda case: chosen_seeds.index(case.seed))


def folders(cases: Sequence[Case]) -> dict[Case, str]:
    """The folder of each case; cases of equal configs, as the reference under all budgets, share one run."""
    first: dict[Config, str] = {}
    return {case: first.setdefault(case.config, case.name) for case in cases}


def _with(config: Config, settings: Mapping[str, Any]) -> Config:
    """A config with settings changed, by dotted name, and checked."""
    mapping = config_dict.ConfigDict(to_dict(config))
    mapping.update_from_flattened_dict(settings)
    return parse(mapping)


def _experiment(common: config_dict.ConfigDict, name: str, settings: Settings) -> Config:
    """The common experiment for the base of a contender, with its settings."""
    base = dict(settings).get("model.base", common.model.base)
    result = default_config(base)
    plain = dict(flatten(default_config(common.model.base).to_dict()))
    known = set(dict(flatten(result.to_dict())))
    for key, value in flatten(common.to_dict()):
        # Of the model only what the experiment changes, as other bases have other defaults.
        changed = not key.startswith("model.") or value != plain[key]
        if key in known and changed and key != "model.base":
            result.update_from_flattened_dict({key: value})
    for key, value in settings:
        require(key in known, key, f"of {name}: base {base} has no such setting{nearest(key, known)}")
        result.update_from_flattened_dict({key: value})
    return parse(result)


# --- budgets --------------------------------------------------------------------------------------------


def _matched(config: Config, reference: Config, budget: str, speed: Callable[[Config], float] | None) -> Config:
    """The config with the reference's budget."""
    if budget == "tokens" or config == reference:
        return config
    if budget == "parameters":
        return _with_parameters(config, _network(reference).n_params)
    if budget == "flops":
        factor = flops_per_token(reference) / flops_per_token(config)
    else:
        assert speed is not None
        factor = speed(config) / speed(reference)
    train = config.train
    steps = max(round(train.steps * factor), 1)
    warmup_steps = min(round(train.warmup_steps * factor), steps)
    return _with(config, {"train.steps": steps, "train.warmup_steps": warmup_steps})


def _network(config: Config) -> Network:
    return random_task(with_vocabulary(config)).network


def flops_per_token(config: Config) -> float:
    """Of training, see `psann_jax.bench.ours.flops_per_token`."""
    return ours.flops_per_token(config, _network(config))


def _with_parameters(config: Config, n_params: int) -> Config:
    """The config with the width of its MLPs, a multiple of 8, that comes nearest to a number of parameters."""
    narrow, wide = (_network(_with(config, {"model.d_mlp": width})).n_params for width in (8, 16))
    width = 8 * max(round((n_params - narrow) / (wide - narrow)) + 1, 1) if wide > narrow else config.model.d_mlp
    fitted = _with(config, {"model.d_mlp": width})
    require(
        math.isclose(_network(fitted).n_params, n_params, rel_tol=0.02),
        "model.d_mlp",
        f"of {config.model.base} cannot give {n_params:,} parameters, as budget parameters asks",
    )
    return fitted


def pairs(cases: Sequence[Case], reference: str) -> Iterator[tuple[Case, Case]]:
    """Every case of another contender with the reference's case of the same settings, seed and budget."""
    by_place = {(c.settings, c.seed, c.budget): c for c in cases if c.contender == reference}
    for case in cases:
        other = by_place.get((case.settings, case.seed, case.budget))
        if case.contender != reference and other is not None:
            yield case, other
