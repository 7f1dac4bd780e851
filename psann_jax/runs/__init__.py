"""Training a run and using a trained one. Start with `psann_jax.runs.restore.load_text_run` or `load_run`.

| module | start from | result |
|---|---|---|
| `training` | `train_run` | a trained run in a workdir |
| `restore` | `load_text_run`, `load_run` | config, network, parameters and tokenizer of a run |
| `evaluate` | `evaluate` | loss, perplexity and accuracy on a text |
| `score` | `Scorer` | log-likelihoods of continuations |
| `lm_eval_model` | `LmEvalModel` | the run as a model of lm_eval |
| `sudoku_solver` | `solve`, `trace` | solutions of Sudoku puzzles |

To generate text, pass `load_text_run(...).sampler()` to `psann_jax.sample.text.TextSampler`.
"""
