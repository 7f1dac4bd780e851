"""Prepares the text of an experiment ahead of training: psann-jax prepare --config=FILE [--jobs=N].

Training with the same data settings then finds it in the cache. A preparation that was interrupted continues when the
same command is given again.
"""

import argparse
from collections.abc import Sequence

from psann_jax.cli.flags import ConfigParser, fail, positive_int, read_config


def main(argv: Sequence[str]) -> None:
    """Trains the tokenizer and tokenises the text of --config, or finds both in the cache; prints what they are."""
    flags = _parse(argv)
    config = read_config(flags)
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.config import DataConfig
    from psann_jax.convert.start import open_start
    from psann_jax.data.loader import load_text
    from psann_jax.data.workers import run_in_processes

    if not isinstance(config.data, DataConfig):
        fail(f"--config: an experiment of base {config.model.base} has no text to prepare")
    tokenizer = open_start(config).tokenizer if config.train.init_from else None
    print(load_text(config.data, run=run_in_processes(flags.jobs), tokenizer=tokenizer).describe())


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser("prepare", "Prepares the text of a config file ahead of training.")
    parser.add_argument(
        "--jobs",
        type=positive_int,
        default=1,
        metavar="N",
        help="processes that tokenise, each with its part of the CPU cores; default 1, which uses several cores too",
    )
    return parser.parse_strictly(argv)
