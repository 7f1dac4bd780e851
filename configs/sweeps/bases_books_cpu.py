"""All bases on whole books at a size for a CPU, in windows of 1,024 tokens of one book: 30 runs.

  psann-jax sweep --config=configs/sweeps/bases_books_cpu.py "--config.data.sources=('books/*.txt',)"

The sources are .txt files of one book each, as they were printed. For books below "# " headings in one file, add
--config.data.document=heading; for WikiText, a raw version and --config.data.document=article.
"""

from ml_collections import config_dict

from configs.shared import small_contenders, small_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = small_sweep()
    common.data.update(document="file", max_length=1024, valid_fraction=0.02)
    common.eval.update(every=200, max_tokens=0)  # a part of the text would be a part of the first book
    contenders = small_contenders() | {"waveresnet": {"model.base": "waveresnet"}}
    return sweep_config(common, contenders, seeds=(1, 2, 3, 4, 5))
