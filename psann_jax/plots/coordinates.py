"""The coordinates of a trained gravity model as one page to look at: how tokens move, and what they attend to.

The page is `coordinates.html` with `coordinates.js`, the numbers and plotly.js within it; it needs no network.
"""

import base64
import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from psann_jax.config import NGTConfig, require
from psann_jax.plots.evolution import Evolution, evolve, project
from psann_jax.runs.restore import TextRun
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra

# The same for every run, so that pictures can be compared; words come again, so that one sees how they differ.
DEFAULT_TEXT = """\
Every stone that falls, falls toward the centre of the Earth. The Moon falls too: it goes round the Earth because the \
Earth draws it, as the Sun draws the Earth.
Two bodies draw each other the more, the heavier they are; at 2 times the distance, 4 times less. "Then why," said the \
girl, "does the Moon not come down?" Because it moves, and while it falls the Earth bends away under it.
In 1687 Newton wrote this down. He did not say what gravity is; he said what it does, and that was enough to find the \
path of a planet, a comet or a stone.
"""
DEFAULT_TOKENS = 256

_SIGNS = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}


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
      path: the HTML file, about 5 MB, nearly all of it plotly.js.
      run: from `load_text_run`; its base is ngt.
      text: one document, read after bos; None: `DEFAULT_TEXT`.
      name: of the run, for the subtitle.
      max_tokens: the first so many tokens, bos among them; None: `DEFAULT_TOKENS`, or the run's window if that is
        shorter.

    Raises:
      UserError: the run is of another base or has diverged, the text has no tokens, max_tokens is below 2 or above
        the run's window, the file cannot be written, or plotly is not installed.
    """
    require_extra("coordinates page", "plotly")
    base, longest = run.config.model.base, run.config.data.max_length
    require(isinstance(run.config.model, NGTConfig), "workdir", f"holds a run of base {base}; only ngt has coordinates")
    n = min(DEFAULT_TOKENS, longest) if max_tokens is None else max_tokens
    require(2 <= n <= longest, "max_tokens", f"is {n}, must be from 2 to the {longest} of the run's data.max_length")
    ids = _encode(run, DEFAULT_TEXT if text is None else text)[:n]
    evolution = evolve(run, ids)
    require(evolution.is_finite(), "workdir", f"holds a run that has diverged: at step {run.step} not all is finite")
    content = page_content(evolution, [visible(run.tokenizer.piece(i)) for i in ids], _subtitle(run, name))
    try:
        Path(path).write_text(page(content), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{os.fspath(path)}: {error.strerror}") from error


def _encode(run: TextRun, text: str) -> list[int]:
    """bos and the tokens of a text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # the command line makes lone surrogates of other bytes
        raise UserError("text: is not UTF-8 text") from error
    ids = run.tokenizer.encode(text)
    require(bool(ids), "text", f"is {text!r}, which has no tokens; give one word at least")
    return [run.tokenizer.bos_id, *ids]


def _subtitle(run: TextRun, name: str) -> str:
    model = run.config.model
    return f"{name}, step {run.step:,}: {model.n_layers} layers, {model.n_heads} heads, {model.variant}"


def visible(piece: bytes) -> str:
    """What a token stands for, with signs for white space and escapes for what cannot be seen or is no character."""
    text = piece.decode("utf-8", errors="backslashreplace")
    return "".join(_SIGNS.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def page_content(evolution: Evolution, tokens: list[str], subtitle: str) -> dict[str, Any]:
    """What the page shows, as JSON.

    Args:
      evolution: of the text.
      tokens: its L tokens, readable.
      subtitle: of the picture.

    Returns:
      tokens, subtitle and: mass (L,); points (K, 3, L), along PC1 to PC3; shares (K, 3), see `Projection`; maxima
      (N, L), the largest weight that each token gives; weights (N,), each base64 of a byte for every pair i >= j in
      the order of rows, token j's weight from token i being maxima[i] * byte / 255.
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
        "shares": _rounded(projection.shares_Kx3),
        "maxima": _rounded(maxima),
        "weights": [base64.b64encode(layer.tobytes()).decode() for layer in bytes_NxP],
    }


def _rounded(values: np.ndarray) -> Any:
    """Nested lists with six decimals, more than the page shows."""
    return np.round(values, 6).tolist()


def page(content: dict[str, Any]) -> str:
    """The HTML page of `page_content`."""
    from plotly.offline import get_plotlyjs

    files = resources.files("psann_jax.plots")
    parts = {
        "plotly": get_plotlyjs(),
        "program": (files / "coordinates.js").read_text(encoding="utf-8"),
        # Within a script element HTML knows no entities, but JSON has an escape: nothing can end the element.
        "content": json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = (files / "coordinates.html").read_text(encoding="utf-8")
    return re.sub(r"<!--(\w+)-->|/\*(\w+)\*/", lambda m: parts[m[1] or m[2]], template)
