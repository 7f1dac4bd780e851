"""Requests for completions: JSON to checked settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psann_jax.sample.settings import Adjustment, Sampling
from psann_jax.serve.errors import reject
from psann_jax.serve.fields import (
    FIELDS,
    MAX_ALTERNATIVES,
    adjustment_of,
    given_fields,
    sampling_of,
    seed_of,
    stops_of,
    usage_of,
    within,
)

_NEUTRAL = {"suffix": (None, "")}  # fields of OpenAI's API that are accepted with the value that changes nothing only
_FIELDS = {**FIELDS, "prompt": (str, list), "best_of": int, "logprobs": int, "echo": bool}


@dataclass(frozen=True)
class TextRequest:
    """A request for texts, whatever the form of its answer.

    Attributes:
      model: name of the run.
      prompts: texts, or lists of token ids.
      sampling: how tokens are chosen; OpenAI's defaults, temperature 1 and no filter.
      adjustment: penalties and bias of tokens.
      max_tokens: most tokens of each text; None: what is left of the context.
      n: texts for each prompt.
      best_of: texts that are generated for each prompt, of which the answer has n; None: n.
      stop: strings that end a text, which does not include them.
      ending: of a message: what follows it, which is not part of its text; None: the text is no message.
      seed: of the random numbers; one that the server draws if the request has none.
      logprobs: number of alternatives for each token; None: no log-probabilities.
      echo: whether the texts begin with their prompts.
      stream: whether the answer is sent in pieces.
      include_usage: whether a stream ends with the number of tokens.
    """

    model: str
    prompts: Sequence[str] | Sequence[list[int]]
    sampling: Sampling
    adjustment: Adjustment
    max_tokens: int | None
    n: int
    stop: tuple[str, ...]
    seed: int
    logprobs: int | None
    stream: bool
    include_usage: bool
    best_of: int | None = None
    echo: bool = False
    ending: str | None = None

    @property
    def source(self) -> str:
        """The field that the prompts come from."""
        return "prompt" if self.ending is None else "messages"

    @property
    def n_generated(self) -> int:
        """Texts that are generated for each prompt."""
        return self.best_of or self.n


def parse_completion(body: Any) -> TextRequest:
    """Checks the JSON body of a request for completions.

    Raises:
      ApiError: with status 400, if a field is unknown, has a wrong type or value, or is not supported.
    """
    given = given_fields(body, _FIELDS, _NEUTRAL, "prompt")
    n, echo = within("n", given.get("n", 1), 1), given.get("echo", False)
    max_tokens = within("max_tokens", given.get("max_tokens", 16), 0)
    if max_tokens == 0 and not echo:
        raise reject("max_tokens", "is 0, must be at least 1 without echo")
    return TextRequest(
        model=given["model"],
        prompts=_prompts(given["prompt"]),
        sampling=sampling_of(given),
        adjustment=adjustment_of(given),
        max_tokens=max_tokens,
        n=n,
        stop=stops_of(given),
        seed=seed_of(given),
        logprobs=None if "logprobs" not in given else within("logprobs", given["logprobs"], 0, MAX_ALTERNATIVES),
        stream=given.get("stream", False),
        include_usage=usage_of(given),
        best_of=_best_of(given, n),
        echo=echo,
    )


def _best_of(given: dict[str, Any], n: int) -> int | None:
    best_of = given.get("best_of")
    if best_of is None:
        return None
    within("best_of", best_of, n)
    if best_of > n and given.get("stream"):
        raise reject("best_of", f"is {best_of}, but only whole texts can be ranked; leave out best_of or stream")
    return int(best_of)


def _prompts(prompt: str | list[Any]) -> list[Any]:
    """A text, a list of texts, token ids or a list of lists of token ids, as a list."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise reject("prompt", "is an empty list; the prompt of a whole document is an empty string")
    if all(map(_is_id, prompt)):
        return [prompt]
    if all(isinstance(one, str) for one in prompt):
        return prompt
    if all(isinstance(one, list) and one and all(map(_is_id, one)) for one in prompt):
        return prompt
    raise reject("prompt", "must be a text, a list of texts, a list of token ids or a list of such lists")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
