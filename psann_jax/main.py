"""Training as a module: python -m psann_jax.main --config=configs/quickstart.py is psann-jax train."""

import sys

from psann_jax.__main__ import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
