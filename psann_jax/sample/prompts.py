"""Sample texts: continuations of fixed prompts, so that runs and steps can be compared."""

from collections.abc import Sequence
from typing import Any

from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.sample.text import TextSampler

# The first prompt is empty: the text then begins as documents do.
DEFAULT_PROMPTS = ("", "The", "In the beginning", "def main(")
_TEMPERATURES = (0.0, 0.8)
_MAX_NEW_TOKENS, _SEED = 64, 0


def sample_settings(prompts: Sequence[str]) -> dict[str, Any]:
    """Returns what sample texts depend on besides the model: prompts, temperatures, max_new_tokens and seed."""
    return {
        "prompts": list(prompts or DEFAULT_PROMPTS),
        "temperatures": list(_TEMPERATURES),
        "max_new_tokens": _MAX_NEW_TOKENS,
        "seed": _SEED,
    }


def sample_texts(sampler: TextSampler, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Continues prompts at each temperature of `sample_settings`, without filters such as top-p.

    With several processes, all of them call it with the same arguments.

    Args:
      sampler: a model.
      prompts: the prompts; none: `DEFAULT_PROMPTS`.

    Returns:
      Dicts with prompt, temperature, text and finish (see `psann_jax.sample.text.Completion`), all texts of one prompt
      before the next prompt. The same model gives the same texts.

    Raises:
      UserError: the model has diverged.
    """
    prompts = list(prompts or DEFAULT_PROMPTS)
    options = GenerationOptions(max_new_tokens=_MAX_NEW_TOKENS, seed=_SEED)
    found = [
        [*sampler.complete(prompts, Sampling(temperature=temperature, top_p=1.0), options)]
        for temperature in _TEMPERATURES
    ]
    return [
        {"prompt": prompt, "temperature": temperature, "text": texts[i].text, "finish": texts[i].finish}
        for i, prompt in enumerate(prompts)
        for temperature, texts in zip(_TEMPERATURES, found, strict=True)
    ]
