"""Settings of one base as settings of another."""

from ml_collections import config_dict

from psann_jax.config.checks import InactiveError, require_known
from psann_jax.config.io import default_config, flatten, is_choice, parse
from psann_jax.config.schema import Config


def with_base(settings: config_dict.ConfigDict, base: str) -> tuple[config_dict.ConfigDict, dict[str, object]]:
    """Moves an experiment to another base.

    Bases have different defaults of the model, so of the model settings only those move that the experiment changes.

    Args:
      settings: the experiment, from `default_config`.
      base: the other base.

    Returns:
      The experiment of the other base; and the changed settings, by dotted name, that it does not have, or not with
      this value.

    Raises:
      ConfigError: an unknown base, or `settings` has an unknown key.
    """
    result = default_config(base)
    known = dict(flatten(result.to_dict()))
    defaults = dict(flatten(default_config(settings.model.base).to_dict()))
    moved, dropped = {}, {}
    for key, value in flatten(settings.to_dict()):
        require_known(key, defaults, key)
        if key == "model.base":
            continue
        changed = value != defaults[key]
        # A value that is wrong with either base stays, for the error message.
        is_allowed = is_choice(base, key, value) or not is_choice(settings.model.base, key, value)
        if key in known and is_allowed and (changed or not key.startswith("model.")):
            moved[key] = value
        elif changed:
            dropped[key] = value
    result.update_from_flattened_dict(moved)
    return result, dropped


def parse_active(settings: config_dict.ConfigDict, fixed: set[str]) -> tuple[Config, dict[str, object]]:
    """Checks an experiment that was moved to another base; model settings without effect there return to their default.

    Args:
      settings: from `with_base`.
      fixed: dotted names of settings that must not be changed.

    Returns:
      The experiment, and the settings that had no effect.

    Raises:
      ConfigError: see `psann_jax.config.io.parse`; also if a fixed setting has no effect.
    """
    settings = config_dict.ConfigDict(settings)
    defaults = dict(flatten(default_config(settings.model.base).to_dict()))
    dropped: dict[str, object] = {}
    while True:
        try:
            return parse(settings), dropped
        except InactiveError as error:
            if error.name in {*fixed, *dropped} or not error.name.startswith("model."):
                raise
            dropped[error.name] = dict(flatten(settings.to_dict()))[error.name]
            settings.update_from_flattened_dict({error.name: defaults[error.name]})
