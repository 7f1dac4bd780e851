"""psann_jax: sine-activated language models and other unusual sequence models in JAX."""
