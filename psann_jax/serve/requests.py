"""Requests for completions: JSON to checked settings."""

import dataclasses
import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from psann_jax.config import ConfigError
from psann_jax.config.names import nearest
from psann_jax.sample.settings import Sampling
from psann_jax.serve.errors import reject

MAX_ALTERNATIVES = 10  # OpenAI's limit of logprobs is 5
_MAX_STOPS = 4  # OpenAI's limit
_MAX_STOP_CHARACTERS = 256
_MAX_SEED = 2**63  # exclusive; seeds are taken modulo 2**32

# Fields of OpenAI's API that are accepted with the value that changes nothing only.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "best_of": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
_LABELS = ("user", "metadata")  # for the client's own use
_FIELDS = {
    "model": str,
    "prompt": (str, list),
    "max_tokens": int,
    "n": int,
    "stop": (str, list),
    "stream": bool,
    "stream_options": dict,
    "logprobs": int,
    "echo": bool,
    "seed": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
}
_SAMPLING = [f.name for f in dataclasses.fields(Sampling)]


@dataclass(frozen=True)
class CompletionRequest:
    """A request for completions.

    Attributes:
      model: name of the run.
      prompts: texts, or lists of token ids.
      sampling: how tokens are chosen; OpenAI's defaults, temperature 1 and no filter.
      max_tokens: most tokens of each completion.
      n: completions of each prompt.
      stop: strings that end a completion, which does not include them.
      seed: of the random numbers; one that the server draws if the request has none.
      logprobs: number of alternatives for each token; None: no log-probabilities.
      echo: whether the texts begin with their prompts.
      stream: whether the answer is sent in pieces.
      include_usage: whether a stream ends with the number of tokens.
    """

    model: str
    prompts: list[str] | list[list[int]]
    sampling: Sampling
    max_tokens: int
    n: int
    stop: tuple[str, ...]
    seed: int
    logprobs: int | None
    echo: bool
    stream: bool
    include_usage: bool


def parse_completion(body: Any) -> CompletionRequest:
    """Checks the JSON body of a request for completions.

    Raises:
      ApiError: with status 400, if a field is unknown, has a wrong type or value, or is not supported.
    """
    if not isinstance(body, dict):
        raise reject("body", "must be a JSON object")
    _refuse_unknown(body)
    given = {name: _typed(name, body[name]) for name in _FIELDS if body.get(name) is not None}
    for name in ("model", "prompt"):
        if name not in given:
            raise reject(name, "is missing")
    stream = given.get("stream", False)
    if given.get("echo") and "logprobs" in given:
        raise reject("echo", "has no log-probabilities of the prompt here; leave out echo or logprobs")
    return CompletionRequest(
        model=given["model"],
        prompts=_prompts(given["prompt"]),
        sampling=_sampling(given),
        max_tokens=_within("max_tokens", given.get("max_tokens", 16), 1),
        n=_within("n", given.get("n", 1), 1),
        stop=_stop(given.get("stop", [])),
        seed=_within("seed", given.get("seed", secrets.randbits(32)), 0, _MAX_SEED - 1) % 2**32,
        logprobs=None if "logprobs" not in given else _within("logprobs", given["logprobs"], 0, MAX_ALTERNATIVES),
        echo=given.get("echo", False),
        stream=stream,
        include_usage=_include_usage(given.get("stream_options"), stream),
    )


def _refuse_unknown(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise reject(name, f"is {value!r:.80}, but this server does not support it", "unsupported_parameter")
        elif name not in _FIELDS and name not in _LABELS:
            raise reject(name, f"is not a field of this request{nearest(name, list(_FIELDS))}", "unknown_parameter")


def _typed(name: str, value: Any) -> Any:
    kind = _FIELDS[name]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else math.inf
    allowed = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        names = {str: "a string", list: "a list", int: "a whole number", bool: "true or false", dict: "an object"}
        words = " or ".join(names.get(one, "a number") for one in allowed)
        raise reject(name, f"is {value!r:.80}, must be {words}")
    return value


def _within(name: str, value: int, least: int, most: int | None = None) -> int:
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise reject(name, f"is {value}, must be {limits}")
    return value


def _sampling(given: Mapping[str, Any]) -> Sampling:
    settings = {"top_p": 1.0} | {name: given[name] for name in _SAMPLING if name in given}
    sampling = Sampling(**settings)
    try:
        sampling.check()
    except ConfigError as error:
        name, _, message = str(error).partition(": ")
        raise reject(name, message) from error
    return sampling


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


def _stop(stop: str | list[Any]) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(text, str) and 0 < len(text) <= _MAX_STOP_CHARACTERS for text in texts):
        raise reject("stop", f"must be a text or several, each with 1 to {_MAX_STOP_CHARACTERS} characters")
    if len(texts) > _MAX_STOPS:
        raise reject("stop", f"has {len(texts)} texts, must be at most {_MAX_STOPS}")
    return tuple(texts)


def _include_usage(options: Mapping[str, Any] | None, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise reject("stream_options", "has no effect without stream")
    if not _only(options, {"include_usage"}) or not isinstance(options.get("include_usage", False), bool):
        raise reject("stream_options", "must be an object with include_usage, true or false")
    return bool(options.get("include_usage", False))


def _only(options: Mapping[str, Any], names: Collection[str]) -> bool:
    return set(options) <= set(names)
