"""Python API: `psannLM`, a language model, `psannLMDataPrep`, its text, and `Callback`, what `fit` calls."""

from psann_jax.api.data import psannLMDataPrep
from psann_jax.api.model import psannLM
from psann_jax.train.callbacks import Callback

__all__ = ["Callback", "psannLM", "psannLMDataPrep"]
