"""Writes the page that shows the token coordinates of a trained gravity model; see `psann_jax.plots.coordinates`."""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.config import require
from psann_jax.models.network import Params
from psann_jax.plots.coordinates import page, page_content, visible
from psann_jax.plots.evolution import Evolution
from psann_jax.runs.restore import TextRun
from psann_jax.train.mesh import num_batch_shards
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra
from psann_jax.utils.files import atomic_write, storage_errors

# The same for every run, so that pages can be compared. Words are repeated to show how their occurrences differ.
DEFAULT_TEXT = """\
Every stone that falls, falls toward the centre of the Earth. The Moon falls too: it moves around the Earth because \
the Earth attracts it, as the Sun attracts the Earth.
Two bodies attract each other more strongly if they are heavier; at 2 times the distance, the force is 4 times weaker. \
"Then why," asked the girl, "does the Moon not come down?" Because it moves, and while it falls, the Earth curves away \
under it.
In 1687 Newton wrote this down. He did not say what gravity is; he said what it does, and that was enough to calculate \
the path of a planet, a comet or a stone.
"""
DEFAULT_TOKENS = 256


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
      run: from `load_text_run`; see `coordinates_page` for this and the other arguments.
      text: one document.
      name: name of the run.
      max_tokens: most tokens.

    Raises:
      UserError: see `coordinates_page`; or the file cannot be written.
    """
    content = coordinates_page(run, text, name=name, max_tokens=max_tokens)
    with storage_errors(path):
        atomic_write(path, content)


def coordinates_page(run: TextRun, text: str | None = None, *, name: str = "run", max_tokens: int | None = None) -> str:
    """Returns the page of a trained gravity model.

    Args:
      run: from `load_text_run`, of a base with coordinates, such as ngt.
      text: one document, read after bos; None means `DEFAULT_TEXT`.
      name: name of the run, for the subtitle.
      max_tokens: show only the first max_tokens tokens, including bos; None means `DEFAULT_TOKENS`, or the run's
        window if that is shorter.

    Raises:
      UserError: the run is of another base or has diverged, the text has no tokens, max_tokens is below 2 or above
        the run's window, or plotly is not installed.
    """
    require_extra("coordinates page", "plotly")
    base, longest = run.config.model.base, run.config.data.max_length
    has_coordinates = run.config.model.HAS_COORDINATES
    require(has_coordinates, "workdir", f"has a run of base {base}, which has no coordinates; ngt has them")
    n = min(DEFAULT_TOKENS, longest) if max_tokens is None else max_tokens
    require(2 <= n <= longest, "max_tokens", f"is {n}, must be from 2 to the {longest} of the run's data.max_length")
    ids = _encode(run, DEFAULT_TEXT if text is None else text)[:n]
    evolution = evolve(run, ids)
    require(evolution.is_finite(), "workdir", f"has a run that has diverged: values at step {run.step} are not finite")
    return page(page_content(evolution, [visible(run.tokenizer.piece(i)) for i in ids], _subtitle(run, name)))


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
    variant = getattr(model, "variant", model.base)
    return f"{name}, step {run.step:,}: {model.n_layers} layers, {model.n_heads} heads, {variant}"


def evolve(run: TextRun, ids: Sequence[int]) -> Evolution:
    """Runs a gravity model on the token ids of one text."""

    def inspect(params: Params, tokens_BxL: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = run.network.merge(params).inspect(tokens_BxL)
        return found["mass"][0], found["coordinates"][:, 0], jnp.mean(found["weights"][:, 0], axis=1)

    # Identical rows, one for each batch shard of the mesh.
    tokens_BxL = jnp.tile(jnp.asarray(ids, jnp.int32), (num_batch_shards(run.mesh), 1))
    with jax.set_mesh(run.mesh):
        arrays = jax.device_get(jax.jit(inspect)(run.params, tokens_BxL))
    return Evolution(*(array.astype(np.float64) for array in arrays))
