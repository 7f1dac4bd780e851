"""Command line: python -m psann_jax.main --config=configs/quickstart.py [--workdir=DIR] [--config.train.lr=1e-3]."""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections.config_flags import config_flags

from psann_jax.command_line import fail, parse_flags
from psann_jax.config_io import parse
from psann_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run's files go; default runs/<name of the config>.")
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Show the settings with all overrides, and exit.")


def main(argv: Sequence[str]) -> None:
    """Trains the experiment of --config."""
    del argv
    try:
        config = parse(_CONFIG.value)
        if _PRINT_CONFIG.value:
            print(_CONFIG.value)
            return
        # Imported late, so that a mistake in a config is told at once.
        from psann_jax.tasks.language_model import LanguageModel
        from psann_jax.train.loop import train

        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        train(config, lambda: LanguageModel.load(config), Path(_WORKDIR.value or f"runs/{name}"))
    except UserError as error:
        fail(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
