"""Checks that this machine trains, shards, generates and resumes correctly; run by `psann-jax selftest`."""

IDS = ("GPU-01", "GPU-02", "GPU-03", "GPU-04", "GPU-05", "GPU-06", "GPU-07", "GPU-08")
