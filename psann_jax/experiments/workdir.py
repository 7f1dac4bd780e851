"""The flag of those measurements that train; apart from the others, as not all of these have --config."""

from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "Where all goes; default a folder in runs/, by the config's place.")
