"""The models that a server has."""

import asyncio
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from psann_jax.config import text_data
from psann_jax.data.encoding import encode_documents
from psann_jax.data.records import Records
from psann_jax.runs.coordinates import coordinates_page
from psann_jax.runs.restore import TextRun
from psann_jax.sample.settings import Adjustment
from psann_jax.sample.slots import SlotRow, Slots
from psann_jax.sample.text import streams_of
from psann_jax.serve.choice import Choice, Update
from psann_jax.serve.engine import Engine
from psann_jax.serve.errors import ApiError, reject
from psann_jax.serve.fields import MAX_ALTERNATIVES, shown
from psann_jax.serve.requests import TextRequest
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import BucketUrl, given_location


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
      n_slots: texts that each model generates at once.
      max_waiting: texts that wait for each model.
      max_length: most tokens of a prompt and its completion; None: the windows of the training.
    """

    n_slots: int = 16
    max_waiting: int = 256
    max_length: int | None = None


class Served:
    """A model with its engine.

    Attributes:
      name: of the model, that of the folder of its run.
      tokenizer: of its training.
      engine: generates its texts.
      records: of its training, with the template of its messages; None if it was not trained on messages.
      run: its run, without parameters for bases without coordinates, to save memory.
    """

    def __init__(self, name: str, run: TextRun, limits: Limits) -> None:
        """Allocates the cache; `start` compiles.

        Raises:
          UserError: max_length is beyond the window of the run, or the mesh divides the batch.
        """
        self.name, self.tokenizer = name, run.tokenizer
        sampler = run.sampler(n_alternatives=MAX_ALTERNATIVES, has_adjustments=True)
        self.engine = Engine(Slots(sampler, limits.n_slots, limits.max_length), limits.max_waiting)
        data = text_data(run.config)
        self.records = Records.of(data) if data.messages_field else None
        self.has_coordinates = bool(run.config.model.HAS_COORDINATES)
        self.run = run if self.has_coordinates else dataclasses.replace(run, params={})
        self._params_bytes = sampler.nbytes + sum(array.nbytes for array in jax.tree.leaves(self.run.params))
        self._loaded = int(time.time())
        self._coordinates = asyncio.Lock()

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its completion."""
        return self.engine.slots.capacity

    def describe(self) -> str:
        """Returns a line for the start: size, context and memory."""
        slots, run = self.engine.slots, self.run
        return (
            f"{self.name}: {run.config.model.base}, step {run.step:,}, {run.network.n_params:,} parameters in "
            f"{self._params_bytes / 2**20:,.1f} MiB; {len(slots.rows)} texts of {slots.capacity:,} tokens at once in "
            f"{slots.nbytes / 2**20:,.1f} MiB"
        )

    def card(self) -> dict[str, Any]:
        """Returns the model's entry in the list of models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._loaded,
            "owned_by": "psann_jax",
            "base": self.run.config.model.base,
            "step": self.run.step,
            "n_params": self.run.network.n_params,
            "max_model_len": self.max_length,
            "has_coordinates": self.has_coordinates,
            "has_chat": self.records is not None,
        }

    async def coordinates_page(self, text: str) -> str:
        """Returns the page of a text, one at a time, because it takes seconds of all cores.

        Raises:
          ApiError: the text has no tokens, the run has diverged or plotly is not installed.
        """
        async with self._coordinates:
            try:
                return await asyncio.to_thread(coordinates_page, self.run, text, name=self.name)
            except UserError as error:
                raise ApiError(400, str(error)) from error

    def encode(self, request: TextRequest) -> list[list[int]]:
        """Returns the ids of the prompts; those of a text begin with bos, and its parts are encoded as in training.

        It takes a second for megabytes of text, and may be called in any thread.

        Raises:
          ApiError: a prompt cannot be encoded, or has ids outside the vocabulary.
        """
        try:
            texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
            for text in texts:
                text.encode()
            encoded = encode_documents(texts, self.tokenizer)
            ids = [next(encoded).ids[:-1] if isinstance(prompt, str) else prompt for prompt in request.prompts]
        except (UnicodeEncodeError, UserError) as error:
            raise reject(request.source, f"cannot be encoded: {error}") from error
        for wrong in (i for row in ids for i in row if not 0 <= i < self.tokenizer.vocab_size):
            raise reject(request.source, f"has token id {shown(wrong)}, outside the {self.tokenizer.vocab_size} ids")
        return ids

    def choices(
        self, request: TextRequest, prompts: Sequence[list[int]], deliver: Callable[[int, Update], None]
    ) -> list[Choice]:
        """Makes the texts of a request: n_generated for each prompt in order.

        The k-th text of a prompt depends on the prompt, the settings, the seed and k, as those of `TextSampler`.

        Args:
          request: for this model.
          prompts: its prompts, from `encode`.
          deliver: called with the number of a text and its update.

        Raises:
          ApiError: there are too many texts, a prompt is too long, or logit_bias names an id outside the vocabulary.
        """
        n = request.n_generated
        wanted, most = len(prompts) * n, len(self.engine.slots.rows) + self.engine.max_waiting
        if wanted > most:
            name = "n" if request.best_of is None else "best_of"
            what = f"makes {shown(wanted)} texts of the prompts, more than the {most} that this server takes on"
            raise reject(name, what)
        limit = self._limit(request, max(map(len, prompts)))
        rows = [ids for ids in prompts for _ in range(n)]
        explained, adjustment = request.logprobs is not None, self._adjustment(request)
        made = []
        for i, (ids, stream) in enumerate(zip(rows, streams_of(rows), strict=True)):
            row = SlotRow(ids, sampling=request.sampling, limit=limit, seed=request.seed, stream=stream)
            row.adjustment = adjustment
            row.n_alternatives, row.is_scored = request.logprobs or 0, explained and request.echo
            update = functools.partial(deliver, i)
            made.append(Choice(row, self.tokenizer, request.stop, explained, request.ending, update))
        return made

    def _adjustment(self, request: TextRequest) -> Adjustment | None:
        """Returns the adjustment if it changes anything."""
        for wrong in (i for i in request.adjustment.logit_bias if i >= self.tokenizer.vocab_size):
            raise reject("logit_bias", f"has token id {shown(wrong)}, outside the {self.tokenizer.vocab_size} ids")
        return None if request.adjustment == Adjustment() else request.adjustment

    def _limit(self, request: TextRequest, longest: int) -> int:
        """Returns the most tokens of each text, given the tokens of the longest prompt."""
        room = self.max_length - longest
        wanted = max(room, 1) if request.max_tokens is None else request.max_tokens
        if wanted > room:
            raise reject(
                "max_tokens",
                f"{shown(wanted)} and a prompt of {longest} tokens, bos included, are more than the "
                f"{self.max_length} tokens of the model's context",
                "context_length_exceeded",
            )
        return wanted


def by_name(workdirs: Sequence[str | os.PathLike[str]]) -> dict[str, Path | BucketUrl]:
    """Returns the runs, on a disk or in buckets, by the names of their folders.

    Raises:
      UserError: two have the same name, or one cannot be a path or URL.
    """
    named: dict[str, Path | BucketUrl] = {}
    for workdir in (given_location(given, "--workdir") for given in workdirs):
        # Not resolved: a link has a name of its own.
        name = os.path.basename(os.path.abspath(workdir)) if isinstance(workdir, Path) else workdir.name
        if name in named:
            raise UserError(
                f"--workdir: {named[name]} and {workdir} have the same name {name}; make a link with another"
            )
        named[name] = workdir
    return named


def find(models: dict[str, Served], name: str) -> Served:
    """Returns the model of that name.

    Raises:
      ApiError: there is none, with status 404.
    """
    if name not in models:
        known = ", ".join(models)
        raise ApiError(
            404, f"model: {name!r:.80} is not served; there are {known}", code="model_not_found", param="model"
        )
    return models[name]
