"""Whole networks built from psann_jax.nn. Their records are in psann_jax/config/families.py."""
