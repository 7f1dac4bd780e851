"""Sweep definitions: contenders x grid x seeds, under one or several budgets.

A file in configs/sweeps/ returns `sweep_config(...)` from get_config(). This module does not import JAX, so that config
files load quickly.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from psann_jax.config import ConfigError, require
from psann_jax.config.bases import with_base
from psann_jax.config.checks import require_known
from psann_jax.config.files import check_override_name, override_key
from psann_jax.config.io import flatten, read_setting
from psann_jax.experiments.tuning import Tuning, as_tuples

RUNG = "rung"  # the name of the size among the settings of a case
BUDGETS = ("tokens", "flops", "parameters", "seconds")


def sweep_config(
    common: config_dict.ConfigDict,
    contenders: Mapping[str, Mapping[str, Any]],
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    budgets: Sequence[str] = ("tokens",),
    tuning: Tuning | None = None,
    rungs: Mapping[str, Mapping[str, Any]] | None = None,
) -> config_dict.ConfigDict:
    """Returns a sweep, in the form that get_config() of a sweep file returns.

    Args:
      common: the experiment, from `default_config`. Model settings that it changes apply to every base that has them.
      contenders: name -> settings by dotted name, model.base among them. The first contender is the reference.
      grid: setting -> values; every contender runs with every combination.
      seeds: seeds of initial weights, data order and dropout; with fewer than four, a report has no verdicts.
      budgets: what is equal for all contenders: training tokens, training FLOPs, parameters (adjusted through d_mlp) or
        seconds of training on this device.
      tuning: a stage that first chooses settings for each contender; None: they run with the settings as given.
      rungs: sizes, name -> settings by dotted name that replace those of `common`, such as widths and numbers of
        updates; every contender runs at every size, and its own settings come after them. The report fits losses
        against compute over the rungs.
    """
    return config_dict.ConfigDict(
        {
            "common": common,
            "contenders": tuple((name, tuple(settings.items())) for name, settings in contenders.items()),
            "grid": tuple((name, as_tuples(tuple(values))) for name, values in (grid or {}).items()),
            "seeds": tuple(seeds),
            "budgets": tuple(budgets),
            "tuning": tuning,
            "rungs": tuple((name, tuple(settings.items())) for name, settings in (rungs or {}).items()),
        }
    )


def contender_config(
    common: config_dict.ConfigDict, settings: Mapping[str, Any], name: str = "the contender"
) -> config_dict.ConfigDict:
    """Returns the experiment of one contender: the common settings that its base has, then its own.

    Args:
      common: the experiment that all contenders share.
      settings: the contender's own settings by dotted name.
      name: the contender's name, for messages.

    Raises:
      ConfigError: the contender's base has no such setting, or a value is of another type.
    """
    base = settings.get("model.base", common.model.base)
    result, _ = with_base(common, base)
    known = set(dict(flatten(result.to_dict())))
    for key, value in settings.items():
        require_known(key, known, key, f"of {name}: base {base} has no such setting")
        _set(result, key, value, f"contender {name}")
    return result


def at_rung(common: config_dict.ConfigDict, settings: Mapping[str, Any], name: str) -> config_dict.ConfigDict:
    """Returns a copy of the common experiment of a sweep with the settings of one rung.

    Args:
      common: the experiment that all contenders share.
      settings: those of the rung by dotted name.
      name: the rung's name, for messages.

    Raises:
      ConfigError: `common` has no such setting, or a value is of another type.
    """
    result, _ = with_base(common, common.model.base)  # a copy
    known = dict(flatten(result.to_dict()))
    for key, value in settings.items():
        require_known(key, known, f"rungs.{name}.{key}", "of the common experiment")
        _set(result, key, value, f"rung {name}")
    return result


def _set(config: config_dict.ConfigDict, key: str, value: Any, where: str) -> None:
    """Changes a setting; raises ConfigError, with `where` it is set, if the value is of another type."""
    try:
        config.update_from_flattened_dict({key: read_setting(config.model.base, key, value)})
    except ConfigError as error:
        raise ConfigError(f"{error} ({where})") from error


# --- overrides ------------------------------------------------------------------------------------------


def check_overrides(sweep: config_dict.ConfigDict, overrides: Sequence[str]) -> None:
    """Checks that overrides leave the contenders, the grid and the seeds of a sweep as they are.

    Args:
      sweep: from `sweep_config`.
      overrides: "KEY=VALUE", see `psann_jax.config.files.apply_overrides`.

    Raises:
      ConfigError: no contender's base has the setting, the grid or the tuning varies it, or the contenders differ in
        it.
    """
    configs = {
        name: dict(flatten(contender_config(sweep.common, dict(own), name).to_dict())) for name, own in sweep.contenders
    }
    names = set().union(*configs.values())
    own_keys = {key for _, own in sweep.contenders for key, _ in own}
    tuned = set[str]().union(*(sweep.tuning.names(name) for name in configs)) if sweep.tuning else set()
    for override in overrides:
        check_override_name(override, names)
        key = override_key(override, names)
        option = f"--config.{key}"
        require(key != "seed", option, "is set by the sweep; choose seeds with --seeds")
        require(key != "model.base", option, "is set by the contenders; choose among them with --bases")
        require(key not in dict(sweep.grid), option, "is varied by the sweep's grid; change the grid in the sweep file")
        require(key not in tuned, option, "is chosen by the sweep's tuning; change its values in the sweep file")
        of_rungs = {key for _, settings in sweep.rungs for key, _ in settings}
        require(key not in of_rungs, option, "is varied by the sweep's rungs; change them in the sweep file")
        values = {name: config[key] for name, config in configs.items() if key in config}
        if key in own_keys and len(set(values.values())) > 1:
            shown = ", ".join(f"{name}={value}" for name, value in list(values.items())[:4])
            more = ", ..." if len(values) > 4 else ""
            require(False, option, f"distinguishes the contenders ({shown}{more}); choose among them with --bases")
