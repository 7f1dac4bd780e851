"""Where progress is shown: on stderr, or on stdout in a notebook, which shows stderr as errors."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

from psann_jax.utils.extras import is_installed


def progress_stream() -> TextIO | None:
    """Returns stdout in a notebook, stderr elsewhere; None if the process was started without it."""
    return sys.stdout if _in_notebook() else sys.stderr


def updates_in_place(stream: TextIO | None) -> bool:
    """Whether a line on the stream can be overwritten: on a terminal, and on stdout of a notebook."""
    return stream is not None and (stream.isatty() or (stream is sys.stdout and _in_notebook()))


def bar_class() -> Any:
    """Returns tqdm's class of bars: widgets in a notebook that has ipywidgets, text elsewhere."""
    if not (_in_notebook() and is_installed("ipywidgets")):
        return tqdm
    from tqdm.notebook import tqdm as notebook_tqdm  # not tqdm.auto, which warns where ipywidgets are missing

    return notebook_tqdm


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook, such as Jupyter's or Colab's."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config
