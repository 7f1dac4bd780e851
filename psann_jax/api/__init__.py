"""The use from Python: `psannLM` and `psannLMDataPrep`."""

from psann_jax.api.data import psannLMDataPrep
from psann_jax.api.model import psannLM

__all__ = ["psannLM", "psannLMDataPrep"]
