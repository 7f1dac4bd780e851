"""The commands psann-jax bench MEASUREMENT, one file each."""
