"""The file with the sample texts of a run."""

import os

from psann_jax.runs.restore import TextRun
from psann_jax.sample.prompts import sample_settings, sample_texts
from psann_jax.sample.text import TextSampler
from psann_jax.utils.files import storage_errors, write_json

SAMPLES = "samples.json"


def write_samples(path: str | os.PathLike[str], run: TextRun) -> None:
    """Writes the sample texts of a run, of its eval.prompts if it has any, with their settings as JSON.

    Raises:
      UserError: the run has diverged, or the file cannot be written.
    """
    prompts = run.config.eval.prompts
    texts = sample_texts(TextSampler(run.sampler(), run.tokenizer), prompts)
    with storage_errors(path):
        write_json(path, {"step": run.step, **sample_settings(prompts), "samples": texts})
