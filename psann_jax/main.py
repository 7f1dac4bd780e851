"""Training as a module: python -m psann_jax.main --config=configs/quickstart.py is psann-jax train."""

import sys

from psann_jax.cli.program import run_program

if __name__ == "__main__":
    run_program(["train", *sys.argv[1:]])
