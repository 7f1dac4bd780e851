"""Flags that several measurements share; absl allows each name once."""

from absl import flags
from ml_collections.config_flags import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.", lock_config=True)
PEER = flags.DEFINE_enum(
    "peer",
    None,
    ["psannlm", "torch"],
    "Another implementation of the same model to compare with; torch, from PyTorch's own layers, is for base sudoku.",
)
STEPS = flags.DEFINE_integer("steps", 30, "Steps to measure, of each contender, after the warm-up.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "A file for the result.")
