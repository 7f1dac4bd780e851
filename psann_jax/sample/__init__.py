"""Text generation: settings, choice of the next token, the compiled decoding loop, and text in and out.

Start from `psann_jax.sample.text.TextSampler` for text, or `psann_jax.sample.generation.generate` for token ids.
"""
