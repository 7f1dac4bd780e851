"""An OpenAI-compatible local server of trained language models, and its page.

`app` answers requests, `engine` generates their texts on slots of a fixed batch (`psann_jax.sample.slots`).
"""
