"""The second baseline, with the parts of recent language models, at a size that a CPU trains in minutes.

  python -m psann_jax.main --config=configs/bases/modern.py

2 CPU cores (AMD EPYC), shared with other programs, with the split of version 0.1: validation loss 8.34 before training
and 4.14 after 300 updates (ppl 63) on Python 3.11; 2,200 to 14,000 tokens/s. After 200 updates
(--config.train.steps=200 --config.train.warmup_steps=20; one seed each, a difference of two runs is no verdict):

  modern                                                              4.43
  modern, qk_norm=False                                               4.41
  modern, qk_norm=False, swiglu with the same parameters (d_mlp 344)  4.44
  modern, qk_norm=False, tied_embeddings                              4.44
  modern, qk_norm=False, logit_softcap=15                             4.42
  modern, qk_norm=False, init=xavier                                  4.86
  transformer                                                         4.88
  transformer, init=zero_output                                       4.44
  respsann                                                            4.74
  respsann, init=zero_output                                          4.49

So most of the gain over the transformer is that of the initial weights.
"""

from ml_collections import config_dict

from configs.shared import small


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    return small("modern")
