"""Evaluates a trained run on any text, with the windows and the evaluation step of training.

Start with `evaluate`, and `validation_text` or `text_of` for its text.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
from tqdm import tqdm

from psann_jax.config import require, text_data
from psann_jax.data.earlier_text import is_of_earlier_version, load_earlier_text
from psann_jax.data.encoding import encode_shard
from psann_jax.data.loader import TextData, load_text
from psann_jax.data.sources import PIECE_BYTES, Source, open_source, read_piece
from psann_jax.data.streamed_text import load_valid_text
from psann_jax.data.valid_text import ValidText
from psann_jax.nn.partition import param_shardings
from psann_jax.runs.restore import TextRun
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.evaluation import EvaluationSums
from psann_jax.train.loss_parts import PartLoss, standard_error
from psann_jax.train.mesh import batch_sharding, check_window, num_batch_shards, put_batch
from psann_jax.train.step import StateSpec, make_eval_step
from psann_jax.utils.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """The results of a run on a text.

    Attributes:
      results: loss (mean cross entropy in nats per token), its standard error loss_stderr, ppl, accuracy,
        bits_per_byte and tokens (predicted ones).
      parts: losses by range of positions ("position") and, if known, by file or other source ("source").
    """

    results: dict[str, float]
    parts: dict[str, list[PartLoss]]


class Evaluator:
    """Evaluates checkpoints of one run on a text, with one compiled program.

    Attributes:
      text: the text.
    """

    def __init__(
        self,
        run: TextRun,
        text: ValidText,
        *,
        max_tokens: int = 0,
        batch_size: int | None = None,
        stride: int | None = None,
    ) -> None:
        """Builds the evaluation step; it is compiled on first use.

        Args:
          run: from `load_text_run`; any checkpoint.
          text: from `validation_text` or `text_of`; its validation part is used.
          max_tokens: evaluate only the first max_tokens tokens, rounded down to whole windows; 0 means all.
          batch_size: windows per batch, over all devices; None means as in training.
          stride: distance of the windows in tokens, see `psann_jax.data.windows.PackedWindows`; None: as in training,
            L.

        Raises:
          UserError: max_tokens, batch_size or stride is invalid, or the mesh cannot divide the windows.
        """
        check_window(run.mesh, run.config.data.max_length, sequence=False)
        require(max_tokens >= 0, "max_tokens", f"is {max_tokens}, must be 0 (all) or above")
        config = replace(run.config, eval=replace(run.config.eval, max_tokens=max_tokens))
        self._rows = config.batch_size // config.train.grad_accum if batch_size is None else batch_size
        shards = num_batch_shards(run.mesh)
        valid = self._rows >= 1 and self._rows % shards == 0
        require(valid, "batch_size", f"is {self._rows}, must be a positive multiple of {shards}")
        self.text = text
        windows = text if stride is None else text.with_stride(stride)
        self._task = LanguageModel(config, cast(TextData, windows))  # no training batches are needed
        network = self._task.network
        shardings = param_shardings(run.mesh, network.abstract, network.infos)
        self._mesh, self._batch = run.mesh, batch_sharding(run.mesh)
        self._step = make_eval_step(
            self._task, StateSpec({"params": network.abstract}, {"params": shardings}), self._batch
        )

    def evaluate(self, run: TextRun, *, progress: bool = False) -> Evaluation:
        """Evaluates a checkpoint.

        Args:
          run: the checkpoint, loaded on the mesh of the constructor's.
          progress: whether to show a progress bar on a terminal.
        """
        sums = EvaluationSums(self._task.target_parts())
        with jax.set_mesh(self._mesh):
            no_bar = not (progress and sys.stderr.isatty())
            for arrays in tqdm(self._task.valid_batches(self._rows), unit=" batches", disable=no_bar):
                sums.add(jax.device_get(self._step(run.params, put_batch(arrays, self._batch))))
        results, windows = self._task.summarise(sums.totals), sums.windows(run.step, self.text.fingerprint)
        assert windows is not None
        loss = {"loss": results["loss"], "loss_stderr": standard_error(windows.nll_W, windows.weight_W)}
        return Evaluation(loss | results, {kind: parts.losses() for kind, parts in windows.parts.items()})


def evaluate(run: TextRun, text: ValidText, *, progress: bool = False, **options: Any) -> Evaluation:
    """Evaluates a run on the validation part of a text.

    Args:
      run: from `load_text_run`.
      text: from `validation_text` or `text_of`.
      progress: whether to show a progress bar on a terminal.
      **options: see `Evaluator`.

    Raises:
      UserError: max_tokens, batch_size or stride is invalid.
    """
    return Evaluator(run, text, **options).evaluate(run, progress=progress)


def validation_text(run: TextRun, progress: bool = False) -> ValidText:
    """Loads the text that a run was trained and validated on.

    Raises:
      UserError: the text is missing or has changed.
    """
    if is_of_earlier_version(run.data):
        return load_earlier_text(text_data(run.config), run.data, run.tokenizer, progress)
    data = text_data(run.config)
    if data.stream:
        valid: ValidText = load_valid_text(data, run.tokenizer)
        name, is_same = "data.valid_sources", run.data.endswith(valid.fingerprint)
    else:
        valid = load_text(data, progress, tokenizer=run.tokenizer)
        name, is_same = "data.sources", run.data == valid.fingerprint
    if not is_same and run.tokenizer.had_dropout:  # this version's own runs save it without
        raise UserError(
            "data.tokenizer: the run's tokenizer has dropout, which this version switches off, so that the text of the "
            "run cannot be encoded as in training; name a text with --data"
        )
    if not is_same:
        raise UserError(f"{name}: differ from the text that the run was trained on; name a text with --data")
    return valid


def text_of(run: TextRun, source: str, *, document: str | None = None, text_field: str | None = None) -> ValidText:
    """Loads a text into memory, tokenised and split into windows as in a run, all of it as validation data.

    Args:
      run: its tokenizer and window settings are used.
      source: the text, named as in `data.sources`.
      document: overrides the run's `data.document`.
      text_field: overrides the run's `data.text_field`.

    Raises:
      UserError: the text cannot be read or is empty.
    """
    data = text_data(run.config)
    names: dict[str, Any] = {"document": document or data.document}
    if text_field:
        names |= {"prompt_field": "", "completion_field": "", "messages_field": "", "template": ""}
        names["text_field"] = text_field
    config = replace(data, sources=(source,), weights=(), valid_sources=(source,), **names)
    opened = open_source(source, config, "--data")
    names_of_files: list[str] = []
    valid = encode_shard(_documents(opened, names_of_files), run.tokenizer)
    if not valid.n_documents:
        raise UserError(f"{source}: has no text, only blank lines")
    counts = [(name, len(list(same))) for name, same in itertools.groupby(names_of_files)]
    return ValidText(config, run.tokenizer, valid, counts, opened.fingerprint)


def _documents(source: Source, names: list[str]) -> Iterator[str]:
    """Yields the documents of a source, and appends the name of the file of each."""
    for piece in source.pieces(PIECE_BYTES):
        for file, text in read_piece(piece):
            names.append(source.files[file])
            yield text
