"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[object]) -> str:
    """Text for the end of an error message that suggests the most similar valid name; empty if none is similar."""
    match = difflib.get_close_matches(name, [str(v) for v in valid], n=1, cutoff=0.5)
    return f", did you mean {match[0]}?" if match else ""
