"""The loss of a trained run on any text, by the windows and the step of evaluation during training."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import jax
import numpy as np
from tqdm import tqdm

from psann_jax.config import DataConfig, require
from psann_jax.data.loader import TextData, load_text
from psann_jax.data.shards import Prepared, Shard
from psann_jax.data.sources import open_source
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.utils.errors import UserError
from psann_jax.nn.partition import param_shardings
from psann_jax.tasks.lm import LanguageModel
from psann_jax.runs.restore import TextRun
from psann_jax.train.mesh import batch_sharding, batch_shards, put_batch
from psann_jax.train.step import StateSpec, make_eval_step

_DOCUMENTS_AT_ONCE = 256  # that are encoded together


def evaluate(
    run: TextRun, text: TextData, *, max_tokens: int = 0, batch_size: int | None = None, progress: bool = False
) -> dict[str, float]:
    """Evaluates a run on the validation part of a text.

    Args:
      run: from `load_text_run`.
      text: `validation_text` or `text_of`.
      max_tokens: only the first so many tokens, in whole windows; 0: all.
      batch_size: windows at once, over all devices; None: as in training.
      progress: whether a bar is shown, on a terminal.

    Returns:
      loss (mean cross entropy in nats), ppl, accuracy, bits_per_byte, tokens (the predicted ones).

    Raises:
      UserError: a setting cannot be used.
    """
    require(max_tokens >= 0, "max_tokens", f"is {max_tokens}, must be 0 (all) or above")
    config = replace(run.config, eval=replace(run.config.eval, max_tokens=max_tokens))
    rows = config.batch_size // config.train.grad_accum if batch_size is None else batch_size
    shards = batch_shards(run.mesh)
    require(rows >= 1 and rows % shards == 0, "batch_size", f"is {rows}, must be a positive multiple of {shards}")
    task = LanguageModel(config, text)
    shardings = param_shardings(run.mesh, task.network.abstract, task.network.infos)
    spec, batch = StateSpec({"params": task.network.abstract}, {"params": shardings}), batch_sharding(run.mesh)
    totals: dict[str, float] = {}
    with jax.set_mesh(run.mesh):
        step = make_eval_step(task, spec, batch)
        hidden = not (progress and sys.stderr.isatty())
        for arrays in tqdm(task.valid_batches(rows), unit=" batches", disable=hidden):
            sums = jax.device_get(step(run.params, put_batch(arrays, batch)))
            totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
    return task.summarise(totals)


def validation_text(run: TextRun, progress: bool = False) -> TextData:
    """The text that a run was trained and validated on.

    Raises:
      UserError: it is not to be found, or has changed.
    """
    text = load_text(run.config.data, progress)
    if text.fingerprint != run.data:
        raise UserError("data.sources: are another text than the run was trained on; name a text with --data")
    return text


def text_of(run: TextRun, source: str, *, document: str | None = None, text_field: str | None = None) -> TextData:
    """A text in the windows of a run, all of it for validation; it is held in memory.

    Args:
      run: gives tokenizer and windows.
      source: a text, named as in `data.sources`.
      document: `data.document`, if not the run's.
      text_field: `data.text_field`, if not the run's.

    Raises:
      UserError: it cannot be read, or holds nothing.
    """
    data = run.config.data
    names: dict[str, str] = {"document": document or data.document, "text_field": text_field or data.text_field}
    config = replace(data, sources=(source,), weights=(), valid_sources=(source,), **names)
    opened = open_source(source, config, "--data")
    valid = _shard(opened.documents(), run.tokenizer)
    if not valid.n_documents:
        raise UserError(f"{source}: holds no text, only blank lines")
    prepared = Prepared(_unused_training_text(config, run.tokenizer), valid, (1,), opened.fingerprint)
    return TextData(config, run.tokenizer, prepared)


def _unused_training_text(config: DataConfig, tokenizer: Tokenizer) -> Shard:
    """The one window for training that `TextData` insists on."""
    length = config.max_length + 1
    return Shard(np.full(length, tokenizer.pad_id, np.uint32), np.array([0, length]), 0)


def _shard(documents: Iterable[str], tokenizer: Tokenizer) -> Shard:
    ids, offsets, text_bytes = [np.zeros(0, np.uint32)], [0], 0
    for texts in _groups(documents, _DOCUMENTS_AT_ONCE):
        for text, plain in zip(texts, tokenizer.encode_batch(texts), strict=True):
            ids.append(np.array([tokenizer.bos_id, *plain, tokenizer.eos_id], np.uint32))
            offsets.append(offsets[-1] + len(ids[-1]))
            text_bytes += len(text.encode())
    return Shard(np.concatenate(ids), np.array(offsets), text_bytes)


def _groups(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
