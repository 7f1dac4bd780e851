"""Folders of the Hugging Face `transformers` library: weights, tokenizer and model card.

Start with `psann_jax.convert.hf.write.write_folder` and `psann_jax.convert.hf.read.read_folder`.
"""
