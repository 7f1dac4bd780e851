"""The layout of an interactive page with the token coordinates of a gravity model and its attention, layer by layer.

The page is `coordinates.html` with `coordinates.js`, the data and plotly.js embedded, so it works offline.
"""

import base64
from typing import Any

import numpy as np

from psann_jax.plots.evolution import Evolution, project
from psann_jax.plots.plotly_page import plotly_page

_SYMBOLS = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}


def visible(piece: bytes) -> str:
    """Decodes a token for display, with symbols for white space and escapes for invisible and invalid bytes."""
    text = piece.decode("utf-8", errors="backslashreplace")
    return "".join(_SYMBOLS.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def page_content(evolution: Evolution, tokens: list[str], subtitle: str) -> dict[str, Any]:
    """Returns the data of the page, ready for JSON.

    Args:
      evolution: of the text.
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
    return plotly_page("psann_jax.plots", "coordinates", content)
