"""The runs of a sweep, one `Case` per run."""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ml_collections import config_dict

from psann_jax.config import Config, ConfigError, require
from psann_jax.config.files import apply_overrides, override_key
from psann_jax.config.io import flatten, parse, to_dict
from psann_jax.config.names import nearest
from psann_jax.experiments.budgets import check_rows, match_budget, trained_vocabulary, with_settings
from psann_jax.experiments.data_check import shared_data
from psann_jax.experiments.sweeps import BUDGETS, RUNG, at_rung, check_overrides, contender_config
from psann_jax.experiments.tuning import Settings, Tuning, require_seeds
from psann_jax.utils.errors import UserError

_NO_FILE_NAME = re.compile(r"[/\\\0]")  # characters that cannot be part of the name of a folder
# Reports would name values that a budget has replaced.
_SET_BY = {"parameters": ("model.d_mlp",), "flops": ("train.steps",), "seconds": ("train.steps",)}
_NO_SEED = "has no effect; seeds are those of the sweep"


@dataclass(frozen=True)
class Case:
    """One run of a sweep.

    Attributes:
      contender: its name in the sweep.
      settings: the rung, if the sweep has rungs, and the combination of the grid; of a trial, what it tries.
      seed: the run's seed.
      budget: what all contenders have in equal amount, a name in `BUDGETS`.
      config: the experiment.
      differences: settings, by dotted name, in which `config` differs from that of the contender it is compared with.
      chosen: settings that the tuning stage chose for the contender.
      stage: comparison, or tuning for a trial.
    """

    contender: str
    settings: Settings
    seed: int
    budget: str
    config: Config
    differences: Settings = ()
    chosen: Settings = ()
    stage: str = "comparison"

    @property
    def group(self) -> tuple[str, Settings, str]:
        """What the runs that differ only in their seed have in common."""
        return self.contender, self.settings, self.budget

    @property
    def label(self) -> str:
        """Contender and grid settings, for tables."""
        return label(self.contender, self.settings)

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        values = [
            f"{name.split('.')[-1]}{_NO_FILE_NAME.sub('-', str(value))}"
            for name, value in (*self.settings, *self.chosen)
        ]
        budget = [] if self.budget == "tokens" else [self.budget]
        return "_".join([self.contender, *values, *budget, f"seed{self.seed}"])


def label(contender: str, settings: Settings) -> str:
    """Names a contender with settings; with the settings of a rung, it names what the tuning stage tunes."""
    return " ".join([contender, *(f"{name}={value}" for name, value in settings)])


def sizes(sweep: config_dict.ConfigDict) -> list[tuple[Settings, config_dict.ConfigDict]]:
    """Returns the rungs of a sweep as settings, each with its common experiment; without rungs, one with no settings.

    Raises:
      ConfigError: the common experiment lacks a setting of a rung.
    """
    if not sweep.rungs:
        return [((), sweep.common)]
    return [(((RUNG, rung),), at_rung(sweep.common, dict(settings), rung)) for rung, settings in sweep.rungs]


def all_cases(
    sweep: config_dict.ConfigDict,
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
    speed: Callable[[Config], float] | None = None,
    chosen: Mapping[str, Settings] | None = None,
    reference: str = "",
) -> list[Case]:
    """Returns the runs of a sweep, all contenders of one seed before the next seed.

    In this order an interrupted sweep still compares the contenders.

    Args:
      sweep: from `psann_jax.experiments.sweeps.sweep_config`.
      only: names of contenders; (): all.
      seeds: seeds to use instead of the sweep's; (): the sweep's.
      overrides: "KEY=VALUE", applied to every contender whose base has the setting, over all its other settings.
      speed: measures a config's tokens/s on this device, for the budget "seconds".
      chosen: `label` of a contender, with its rung -> the settings that the tuning stage chose.
      reference: the contender that the others are compared with; "": the first one. Budgets are those of the first one.

    Raises:
      UserError: `sweep` is not a sweep.
      ConfigError: an unknown contender, setting or budget, an empty sweep, an override that changes what the sweep
        compares, or an invalid value.
    """
    if "contenders" not in sweep:
        raise UserError("--config: is a single experiment, not a sweep; see configs/sweeps/")
    contenders, grid = dict(sweep.contenders), dict(sweep.grid)
    chosen_seeds = tuple(seeds) or tuple(sweep.seeds)
    _check_definition(sweep, only, chosen_seeds)
    check_overrides(sweep, overrides)
    combinations = [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    cases: list[Case] = []
    vocabulary = functools.cache(trained_vocabulary)  # for this call alone: the text may change before another
    for budget, (rung, common), values in itertools.product(sweep.budgets, sizes(sweep), combinations):
        best = {name: (chosen or {}).get(label(name, rung), ()) for name in contenders}
        configs = {
            name: experiment(common, name, (*own, *values, *best[name]), overrides) for name, own in contenders.items()
        }
        _check_data(configs, sweep.tuning)
        first = next(iter(configs.values()))
        matched = {
            name: match_budget(config, first, budget, speed, vocabulary)
            for name, config in configs.items()
            if not only or name in only
        }
        compared = matched.get(reference, first)
        for name, config in matched.items():
            differences = _differences(config, compared)
            case = Case(name, (*rung, *values), config.seed, budget, config, differences, best[name])
            cases += [replace(case, seed=seed, config=with_settings(config, {"seed": seed})) for seed in chosen_seeds]
    return sorted(cases, key=lambda case: chosen_seeds.index(case.seed))


def _check_definition(sweep: config_dict.ConfigDict, only: Sequence[str], seeds: Sequence[int]) -> None:
    contenders, grid = dict(sweep.contenders), dict(sweep.grid)
    require(bool(contenders) and bool(seeds), "contenders", "and seeds must not be empty")
    require_seeds(seeds, "seeds")
    for field in ("contenders", "rungs"):
        for name, own in sweep[field]:
            is_file_name = isinstance(name, str) and name not in ("", ".", "..") and not _NO_FILE_NAME.search(name)
            require(is_file_name, field, f"has the name {name!r}, which cannot be a part of a folder's name")
            require("seed" not in dict(own), f"{field}.{name}.seed", _NO_SEED)
    for name in only:
        require(name in contenders, "--bases", f"{name!r} is no contender{nearest(name, contenders)}")
    for name, values in grid.items():
        require(bool(values), f"grid.{name}", "is empty")
        require(name != "seed", "grid.seed", _NO_SEED)
        require(name != "model.base", "grid.model.base", "cannot be varied; give each base as a contender")
        for kind in ("contenders", "rungs"):
            for other, own in sweep[kind]:
                where, is_free = f"grid.{name}", name not in dict(own)
                require(is_free, where, f"is also set by {kind}.{other}; leave out the one or the other")
    for budget in sweep.budgets:
        require(budget in BUDGETS, "budgets", f"{budget!r} is unknown{nearest(budget, BUDGETS)}")
    varied = {f"grid.{name}": name for name in grid}
    if sweep.tuning is not None:
        require(not grid, "tuning", "cannot be combined with a grid; give each point of the grid as a contender")
        sweep.tuning.check(contenders, seeds)
        tuned = set[str]().union(*(sweep.tuning.names(name) for name in contenders))
        for rung, size in sweep.rungs:
            for name, _ in size:
                require(name not in tuned, f"rungs.{rung}.{name}", "is chosen by the tuning, so no rung can set it")
        varied = {f"tuning.values.{name}": name for name in tuned}
    for where, name in varied.items():
        for budget in sweep.budgets:
            is_set = name in _SET_BY.get(budget, ())
            require(not is_set, where, f"is set by the budget {budget}; leave out the one or the other")


def _check_data(configs: Mapping[str, Config], tuning: Tuning | None) -> None:
    """Checks that contenders have one task; with trials, equal training tokens and validation data that none reads."""
    first, *_ = configs
    tokens = {name: config.train.steps * config.train.batch_tokens for name, config in configs.items()}
    for name, config in configs.items():
        same_task = type(config.data) is type(configs[first].data)
        require(same_task, f"contenders.{name}", f"has another task than {first}")
        require(
            tuning is None or tokens[name] == tokens[first],
            f"contenders.{name}",
            f"trains on {tokens[name]:,} tokens (train.steps * train.batch_tokens), but {first} on {tokens[first]:,}; "
            "a tuning stage needs equal training tokens",
        )
        if tuning is not None:
            check_rows(config, configs[first], "the trials")
            is_fixed = getattr(config.data, "pack", True) or "data.weights" not in tuning.names(name)
            require(is_fixed, "tuning.values.data.weights", "needs data.pack=True: padding makes the tokens unequal")
    for data in () if tuning is None else {config.data for config in configs.values()}:
        setting = "set data.valid_sources (or data.valid_files)"
        require(bool(data.valid_names), "tuning", f"needs fixed validation data, which no trial reads; {setting}")
        shared = shared_data(data)
        require(not shared, "tuning", f"validation and training data have {shared} in common; {setting} to others")


def experiment(common: config_dict.ConfigDict, contender: str, settings: Settings, overrides: Sequence[str]) -> Config:
    """Returns the checked experiment of a contender, with the overrides of settings that its base has."""
    config = contender_config(common, dict(settings), contender)
    names = dict(flatten(config.to_dict()))
    apply_overrides(config, [override for override in overrides if override_key(override, names) in names])
    try:
        return parse(config)
    except ConfigError as error:
        raise ConfigError(f"{error} (contender {contender})") from error


def _differences(config: Config, reference: Config) -> Settings:
    own, others = dict(flatten(to_dict(config))), dict(flatten(to_dict(reference)))
    return tuple((name, value) for name, value in own.items() if name in others and others[name] != value)


def folders(cases: Sequence[Case]) -> dict[Case, str]:
    """Maps each case to its folder's name; cases with equal configs, such as the reference's, share one run.

    Raises:
      ConfigError: runs with different configs have the same name.
    """
    first: dict[Config, str] = {}
    found = {case: first.setdefault(case.config, case.name) for case in cases}
    named: dict[str, Config] = {}
    for case, name in found.items():
        alone = named.setdefault(name, case.config) == case.config
        require(alone, "contenders", f"give two different runs the name {name}; choose other names or values")
    return found
