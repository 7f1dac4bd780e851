"""Sample texts of a run: continuations of fixed prompts, the same for every run, so that runs can be compared."""

import os
from typing import Any

from psann_jax.runs.restore import TextRun
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.sample.text import TextSampler
from psann_jax.utils.files import storage_errors, write_json

SAMPLES = "samples.json"
# The first prompt is empty: the text then begins as documents do.
SETTINGS: dict[str, Any] = {
    "prompts": ["", "The", "In the beginning", "def main("],
    "temperatures": [0.0, 0.8],
    "max_new_tokens": 64,
    "seed": 0,
}


def sample_texts(run: TextRun) -> list[dict[str, Any]]:
    """Continues the prompts of `SETTINGS` at each of its temperatures, without filters such as top-p.

    Args:
      run: from `load_text_run`.

    Returns:
      Dicts with prompt, temperature, text and finish (see `psann_jax.sample.text.Completion`), all texts of one prompt
      before the next prompt. The same run gives the same texts.

    Raises:
      UserError: the run has diverged.
    """
    sampler = TextSampler(run.sampler(), run.tokenizer)
    options = GenerationOptions(max_new_tokens=SETTINGS["max_new_tokens"], seed=SETTINGS["seed"])
    rows = []
    for temperature in SETTINGS["temperatures"]:
        sampling = Sampling(temperature=temperature, top_p=1.0)
        for found in sampler.complete(SETTINGS["prompts"], sampling, options):
            shown = {"prompt": found.prompt, "temperature": temperature, "text": found.text, "finish": found.finish}
            rows.append(shown)
    return sorted(rows, key=lambda row: SETTINGS["prompts"].index(row["prompt"]))


def write_samples(path: str | os.PathLike[str], run: TextRun) -> None:
    """Writes the sample texts of a run with their settings as JSON.

    Raises:
      UserError: the run has diverged, or the file cannot be written.
    """
    content = {"step": run.step, **SETTINGS, "samples": sample_texts(run)}
    with storage_errors(path):
        write_json(path, content)
