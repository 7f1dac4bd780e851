"""An interactive page with the token coordinates of a trained gravity model and its attention, layer by layer.

The page is `coordinates.html` with `coordinates.js`, the data and plotly.js embedded, so it works offline.
"""

import base64
import json
import os
import re
from importlib import resources
from typing import Any

import numpy as np

from psann_jax.config import NGTConfig, require
from psann_jax.plots.evolution import Evolution, evolve, project
from psann_jax.runs.restore import TextRun
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra
from psann_jax.utils.files import atomic_write, storage_errors

# The same for every run, so that pages can be compared. Words are repeated to show how their occurrences differ.
DEFAULT_TEXT = """\
Every stone that falls, falls toward the centre of the Earth. The Moon falls too: it goes round the Earth because the \
Earth draws it, as the Sun draws the Earth.
Two bodies draw each other the more, the heavier they are; at 2 times the distance, 4 times less. "Then why," said the \
girl, "does the Moon not come down?" Because it moves, and while it falls the Earth bends away under it.
In 1687 Newton wrote this down. He did not say what gravity is; he said what it does, and that was enough to find the \
path of a planet, a comet or a stone.
"""
DEFAULT_TOKENS = 256

_SYMBOLS = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}


def write_coordinates(
    path: str | os.PathLike[str],
    run: TextRun,
    text: str | None = None,
    *,
    name: str = "run",
    max_tokens: int | None = None,
) -> None:
    """Writes the page of a trained gravity model.

    Args:
      path: the HTML file to write, about 5 MB, most of it plotly.js.
      run: from `load_text_run`, of base ngt.
      text: one document, read after bos; None means `DEFAULT_TEXT`.
      name: name of the run, for the subtitle.
      max_tokens: show only the first max_tokens tokens, including bos; None means `DEFAULT_TOKENS`, or the run's
        window if that is shorter.

    Raises:
      UserError: the run is of another base or has diverged, the text has no tokens, max_tokens is below 2 or above
        the run's window, the file cannot be written, or plotly is not installed.
    """
    require_extra("coordinates page", "plotly")
    base, longest = run.config.model.base, run.config.data.max_length
    require(isinstance(run.config.model, NGTConfig), "workdir", f"has a run of base {base}; only ngt has coordinates")
    n = min(DEFAULT_TOKENS, longest) if max_tokens is None else max_tokens
    require(2 <= n <= longest, "max_tokens", f"is {n}, must be from 2 to the {longest} of the run's data.max_length")
    ids = _encode(run, DEFAULT_TEXT if text is None else text)[:n]
    evolution = evolve(run, ids)
    require(evolution.is_finite(), "workdir", f"has a run that has diverged: values at step {run.step} are not finite")
    content = page_content(evolution, [visible(run.tokenizer.piece(i)) for i in ids], _subtitle(run, name))
    with storage_errors(path):
        atomic_write(path, page(content))


def _encode(run: TextRun, text: str) -> list[int]:
    """Encodes a text, with bos before it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # the command line decodes invalid bytes to lone surrogates
        raise UserError("text: is not UTF-8 text") from error
    ids = run.tokenizer.encode(text)
    require(bool(ids), "text", f"is {text!r}, which has no tokens; give at least one word")
    return [run.tokenizer.bos_id, *ids]


def _subtitle(run: TextRun, name: str) -> str:
    model = run.network.config
    return f"{name}, step {run.step:,}: {model.n_layers} layers, {model.n_heads} heads, {model.variant}"


def visible(piece: bytes) -> str:
    """Decodes a token for display, with symbols for white space and escapes for invisible and invalid bytes."""
    text = piece.decode("utf-8", errors="backslashreplace")
    return "".join(_SYMBOLS.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def page_content(evolution: Evolution, tokens: list[str], subtitle: str) -> dict[str, Any]:
    """Returns the data of the page, ready for JSON.

    Args:
      evolution: from `evolve`.
      tokens: the L tokens of the text, from `visible`.
      subtitle: subtitle of the plot.

    Returns:
      A dict with tokens, subtitle and
      mass: (L,);
      points: (K, 3, L), the projection on PC1 to PC3;
      variance: (K, 3), see `Projection.variance_fractions_Kx3`;
      maxima: (N, L), the largest attention weight of each query;
      weights: (N,), base64 of one byte for each query i and key j <= i, row by row; a weight is maxima[i] * byte / 255.
    """
    projection = project(evolution.coordinates_KxLxC)
    weights = evolution.weights_NxLxL
    maxima = weights.max(axis=-1)
    rows, columns = np.tril_indices(len(tokens))
    bytes_NxP = np.rint(255 * (weights / maxima[..., None])[:, rows, columns]).astype(np.uint8)
    return {
        "subtitle": subtitle,
        "tokens": tokens,
        "mass": _rounded(evolution.mass_L),
        "points": _rounded(projection.points_KxLx3.swapaxes(1, 2)),
        "variance": _rounded(projection.variance_fractions_Kx3),
        "maxima": _rounded(maxima),
        "weights": [base64.b64encode(layer.tobytes()).decode() for layer in bytes_NxP],
    }


def _rounded(values: np.ndarray) -> Any:
    """Converts to nested lists with six decimals, more than the page shows."""
    return np.round(values, 6).tolist()


def page(content: dict[str, Any]) -> str:
    """Returns the HTML page for the result of `page_content`."""
    from plotly.offline import get_plotlyjs

    files = resources.files("psann_jax.plots")
    parts = {
        "plotly": get_plotlyjs(),
        "program": (files / "coordinates.js").read_text(encoding="utf-8"),
        # HTML decodes no entities in a script element, but JSON has escapes: with them no text can end the element.
        "content": json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = (files / "coordinates.html").read_text(encoding="utf-8")
    return re.sub(r"<!--(\w+)-->|/\*(\w+)\*/", lambda m: parts[m[1] or m[2]], template)
