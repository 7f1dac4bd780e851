"""Whole networks built from psann_jax.nn, and their registry."""
