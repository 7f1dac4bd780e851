"""Prepares the text of an experiment ahead of training: psann-jax prepare --config=FILE [--jobs=N | --engine=ray].

Training with the same data settings then finds it in the cache. A preparation that was interrupted continues when the
same command is given again.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from psann_jax.cli.flags import ConfigParser, add_engine, fail, read_config, refuse_inactive_engine


def main(argv: Sequence[str]) -> None:
    """Trains the tokenizer and tokenises the text of --config, or finds both in the cache; prints what they are."""
    flags = _parse(argv)
    config = read_config(flags)
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.config import DataConfig
    from psann_jax.convert.start import open_start
    from psann_jax.data.loader import load_text

    if not isinstance(config.data, DataConfig):
        fail(f"--config: an experiment of base {config.model.base} has no text to prepare")
    run = _run(flags, config.data)
    tokenizer = open_start(config).tokenizer if config.train.init_from else None
    print(load_text(config.data, run=run, tokenizer=tokenizer).describe())


def _run(flags: argparse.Namespace, data: Any) -> Any:
    """Returns the `psann_jax.data.preparation.Run` that the flags name, for a `data` section."""
    from psann_jax.data.nodes import run_on_nodes
    from psann_jax.data.workers import run_in_processes

    if flags.engine == "local":
        return run_in_processes(flags.jobs or 1)
    return run_on_nodes(data, flags.address, flags.cpus_per_piece or 1)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser("prepare", "Prepares the text of a config file ahead of training.")
    jobs = "processes that tokenise, each with its part of the CPU cores; default 1, which uses several cores too"
    add_engine(parser, "piece", jobs)
    flags = parser.parse_strictly(argv)
    refuse_inactive_engine(flags, "cpus_per_piece")
    return flags
