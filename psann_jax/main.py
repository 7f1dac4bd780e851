"""Command line: python -m psann_jax.main --config=configs/quickstart.py [--workdir=DIR] [--config.train.lr=1e-3]."""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections.config_flags import config_flags

from psann_jax.cli.config_flags import default_workdir, fail, parse_flags
from psann_jax.config.io import parse
from psann_jax.utils.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run's files go; default runs/<place of the config in configs/>."
)
_PROFILE_STEPS = flags.DEFINE_string("profile_steps", "", "FIRST:LAST, steps to trace into the workdir's profile/.")
_JOIN_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Show the settings with all overrides, and exit.")

_PRINT_SHARDING = flags.DEFINE_bool(
    "print_sharding", False, "Show how arrays are split over the mesh, memory and collectives, and exit."
)


def main(argv: Sequence[str]) -> None:
    """Trains the experiment of --config."""
    del argv
    try:
        config = parse(_CONFIG.value)
        if _PRINT_CONFIG.value:
            print(_CONFIG.value)
            return
        if _PRINT_SHARDING.value:
            from psann_jax.bench.layout import describe_layout, pretend_devices

            pretend_devices(config)
            print(describe_layout(config))
            return
        # Imported late, so that a mistake in a config is told at once.
        from psann_jax.data.cache import cache_root
        from psann_jax.tasks.registry import TASKS
        from psann_jax.train.compilation import keep_programs
        from psann_jax.train.loop import train
        from psann_jax.train.processes import join

        join(_JOIN_TIMEOUT.value)
        keep_programs(cache_root(config.data.cache_dir) / "programs")
        workdir = Path(_WORKDIR.value or default_workdir())
        train(config, lambda: TASKS[type(config.data)].load(config), workdir, profile_steps=_PROFILE_STEPS.value)
    except UserError as error:
        fail(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
