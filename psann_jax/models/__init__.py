"""Whole networks built from psann_jax.nn. Their records are in psann_jax/config/families.py.

A network is a function of its parameters: `build(model_section)` returns a `Network`, its `init(key)` the parameters as
nested dicts, and `merge(params)` inside a traced function a `TextNetwork`, whose call maps tokens to logits.
docs/api.md has a complete training loop.
"""

from psann_jax.models.network import Network, Params, build, make_network
from psann_jax.models.text_network import TextNetwork

__all__ = ["Network", "Params", "TextNetwork", "build", "make_network"]
