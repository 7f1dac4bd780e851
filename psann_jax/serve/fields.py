"""Fields of requests: types, limits, and what completions and chats have in common."""

import dataclasses
import math
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from psann_jax.config import ConfigError
from psann_jax.config.names import nearest
from psann_jax.sample.settings import Adjustment, Sampling
from psann_jax.serve.errors import reject

MAX_ALTERNATIVES = 10  # OpenAI's limits are 5 for completions and 20 for chats
_MAX_STOPS = 4  # OpenAI's limit
_MAX_STOP_CHARACTERS = 256
_MAX_SEED = 2**63  # exclusive; seeds are taken modulo 2**32
_MAX_PENALTY, _MAX_BIAS = 2, 100  # OpenAI's limits
_MAX_SHOWN = 80  # characters of a value in a message

_LABELS = ("user", "metadata")  # for the client's own use
_SAMPLING = [f.name for f in dataclasses.fields(Sampling)]
Kinds = Mapping[str, type | tuple[type, ...]]
FIELDS: Kinds = {
    "model": str,
    "max_tokens": int,
    "n": int,
    "stop": (str, list),
    "stream": bool,
    "stream_options": dict,
    "seed": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "logit_bias": dict,
}


def given_fields(body: Any, kinds: Kinds, neutral: Mapping[str, tuple[Any, ...]], required: str) -> dict[str, Any]:
    """Returns the fields of a JSON body that are not null.

    Args:
      body: as parsed.
      kinds: field -> types of its values.
      neutral: field that is not supported -> the values that it may have, because they change nothing.
      required: a field that must be there, besides model.

    Raises:
      ApiError: the body is no object, or a field is unknown, not supported, missing or of a wrong type.
    """
    if not isinstance(body, dict):
        raise reject("body", "must be a JSON object")
    for name, value in body.items():
        if name in neutral:
            if value not in neutral[name]:
                raise reject(name, f"is {shown(value)}, but this server does not support it", "unsupported_parameter")
        elif name not in kinds and name not in _LABELS:
            wrong = name if name.isidentifier() and name.isascii() and len(name) <= _MAX_SHOWN else shown(name)
            hint = nearest(wrong, list(kinds))
            raise reject(wrong, f"is not a field of this request{hint}", "unknown_parameter")
    given = {name: _typed(name, body[name], kinds[name]) for name in kinds if body.get(name) is not None}
    for name in ("model", required):
        if name not in given:
            raise reject(name, "is missing")
    return given


def shown(value: Any) -> str:
    """Returns a value as a short text for a message, in characters that any client can read."""
    return f"{value!r:.{_MAX_SHOWN}}"


def _typed(name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else math.inf
    allowed = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        names = {str: "a string", list: "a list", int: "a whole number", bool: "true or false", dict: "an object"}
        words = " or ".join(names.get(one, "a number") for one in allowed)
        raise reject(name, f"is {shown(value)}, must be {words}")
    return value


def within(name: str, value: Any, least: int, most: int | None = None) -> Any:
    """Returns a number if it is within its limits; raises ApiError otherwise."""
    if not value >= least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise reject(name, f"is {shown(value)}, must be {limits}")
    return value


def sampling_of(given: Mapping[str, Any]) -> Sampling:
    """Returns how tokens are chosen, by default without filters; raises ApiError for an invalid value."""
    settings = {"top_p": 1.0} | {name: given[name] for name in _SAMPLING if name in given}
    sampling = Sampling(**settings)
    try:
        sampling.check()
    except ConfigError as error:
        name, _, message = str(error).partition(": ")
        raise reject(name, message) from error
    return sampling


def adjustment_of(given: Mapping[str, Any]) -> Adjustment:
    """Returns penalties and bias of tokens; raises ApiError for values out of range."""
    penalties = {
        name: within(name, given.get(name, 0.0), -_MAX_PENALTY, _MAX_PENALTY)
        for name in ("presence_penalty", "frequency_penalty")
    }
    bias = {}
    for key, value in given.get("logit_bias", {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < _MAX_SHOWN):
            raise reject("logit_bias", f"has {shown(key)}, must have token ids in quotation marks")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= _MAX_BIAS:
            raise reject("logit_bias", f"is {shown(value)} for token {key}, must be from -{_MAX_BIAS} to {_MAX_BIAS}")
        bias[int(key)] = float(value)
    return Adjustment(logit_bias=bias, **penalties)


def seed_of(given: Mapping[str, Any]) -> int:
    """Returns the seed, drawn if there is none; raises ApiError for one out of range."""
    return within("seed", given.get("seed", secrets.randbits(32)), 0, _MAX_SEED - 1) % 2**32


def stops_of(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the strings that end a text; raises ApiError for wrong ones or too many."""
    stop = given.get("stop", [])
    texts = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(text, str) and 0 < len(text) <= _MAX_STOP_CHARACTERS for text in texts):
        raise reject("stop", f"must be a text or several, each with 1 to {_MAX_STOP_CHARACTERS} characters")
    if len(texts) > _MAX_STOPS:
        raise reject("stop", f"has {len(texts)} texts, must be at most {_MAX_STOPS}")
    return tuple(texts)


def usage_of(given: Mapping[str, Any]) -> bool:
    """Returns whether a stream ends with the number of tokens; raises ApiError for other options of a stream."""
    options = given.get("stream_options")
    if options is None:
        return False
    if not given.get("stream"):
        raise reject("stream_options", "has no effect without stream")
    if not only(options, {"include_usage"}) or not isinstance(options.get("include_usage", False), bool):
        raise reject("stream_options", "must be an object with include_usage, true or false")
    return bool(options.get("include_usage", False))


def only(options: Mapping[str, Any], names: Collection[str]) -> bool:
    """Returns whether an object has no other keys than these."""
    return set(options) <= set(names)
