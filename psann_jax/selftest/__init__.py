"""Checks that the device at hand trains, divides, generates and resumes as it should. See `psann_jax.cli.selftest`."""

IDS = ("GPU-01", "GPU-02", "GPU-03", "GPU-04", "GPU-05", "GPU-06", "GPU-07", "GPU-08")
