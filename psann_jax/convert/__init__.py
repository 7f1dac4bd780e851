"""Import and export of weights: safetensors files, runs, and checkpoints of psannlm and NGT.

Start with `psann_jax.convert.read.read_weights`, `safetensors_file.write_safetensors` and `run.write_run`.
"""
