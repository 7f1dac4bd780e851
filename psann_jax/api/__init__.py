"""Python API: `psannLM`, a language model, and `psannLMDataPrep`, its text."""

from psann_jax.api.data import psannLMDataPrep
from psann_jax.api.model import psannLM

__all__ = ["psannLM", "psannLMDataPrep"]
