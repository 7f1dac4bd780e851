"""Training as a module: python -m psann_jax.main --config=configs/quickstart.py is psann-jax train."""

from psann_jax.cli.flags import run_command
from psann_jax.cli.train import main

if __name__ == "__main__":
    run_command(main)
