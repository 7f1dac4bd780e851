"""Figures of runs and trained networks, and the style shared by all figures (`style`)."""

import contextlib
import os

# Importing matplotlib fails if MPLBACKEND, which notebooks set for the programs that they start, names a backend that
# is not installed. The figures here are made without pyplot and need none.
_backend = os.environ.pop("MPLBACKEND", None)
import matplotlib  # noqa: E402

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend
if _backend:
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend
