"""Settings of generation with their defaults and checks, for the command line and the API; imports no JAX."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

import numpy as np

from psann_jax.config import require
from psann_jax.config.values import require_number, require_whole

_MAX_SAMPLES = 1_000_000  # per prompt: all are listed before the first is generated
Overflow = Literal["stop", "slide"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. All fields are traced, so other values need no recompilation.

    Attributes:
      temperature: divides the logits. 0 takes the most probable token, the first of several equal ones, and makes
        the filters ineffective.
      top_k: keeps the k most probable tokens and those as probable as the k-th; 0 keeps all.
      top_p: keeps the smallest set of most probable tokens whose probabilities sum to at least this, and those as
        probable as the last of them; 1 keeps all. Source: Holtzman et al. (2020).
      min_p: keeps tokens at least this fraction as probable as the most probable one; 0 keeps all. Source: Nguyen et
        al. (2024).
      repetition_penalty: divides the positive and multiplies the negative logits of tokens that occur in the prompt
        or the text generated so far; 1 changes nothing. Source: CTRL, Keskar et al. (2019).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def check(self) -> None:
        """Raises ConfigError for the first invalid value; the message begins with the field's name."""
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            require_number(name, getattr(self, name))
        t, penalty = self.temperature, self.repetition_penalty
        require(0 <= t < math.inf, "temperature", f"is {t}, must be 0 (the most probable token) or above")
        require_whole("top_k", self.top_k, 0)
        require(0 < self.top_p <= 1, "top_p", f"is {self.top_p}, must be above 0 and at most 1 (all tokens)")
        require(0 <= self.min_p <= 1, "min_p", f"is {self.min_p}, must be between 0 (all tokens) and 1")
        require(0 < penalty < math.inf, "repetition_penalty", f"is {penalty}, must be positive; 1 means no penalty")

    def scalars(self) -> Self:
        """Returns the same settings as numpy scalars of fixed types, for tracing.

        Values beyond the normal numbers of float32 become the nearest of them, or 0 for temperature and min_p, because
        devices treat smaller numbers as 0.
        """
        info = np.finfo(np.float32)
        least, most = float(info.tiny), float(info.max)
        penalty = np.float32(min(max(self.repetition_penalty, least), most))
        return type(self)(
            temperature=np.float32(min(self.temperature, most) if self.temperature >= least else 0),  # type: ignore[arg-type]
            top_k=np.int32(min(self.top_k, np.iinfo(np.int32).max)),  # type: ignore[arg-type]
            top_p=np.float32(max(self.top_p, least)),  # type: ignore[arg-type]
            min_p=np.float32(self.min_p if self.min_p >= least else 0),  # type: ignore[arg-type]
            repetition_penalty=penalty,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Adjustment:
    """What one text adds to the logits of tokens, after the repetition penalty. Source: OpenAI's API.

    Attributes:
      presence_penalty: is subtracted for tokens that have been generated.
      frequency_penalty: is subtracted as often as a token has been generated.
      logit_bias: token id -> what is added.
    """

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


# Draws from the model's own distribution.
UNFILTERED = Sampling(top_p=1.0)


@dataclass(frozen=True)
class GenerationOptions:
    """What is generated, apart from the choice of each token.

    Attributes:
      max_new_tokens: most tokens generated per text.
      stop: strings that end a text where they first occur; the text does not include them.
      seed: of all random numbers, below 2**32.
      num_samples: texts generated per prompt, at most a million.
      overflow: what happens when a text fills the model's context. "slide": generation continues from the last half of
        the context, and a prompt that is too long is truncated to its end. "stop": the text ends, and a prompt that is
        too long is an error.
      max_prompt_tokens: longer prompts, bos included, lose their beginning; None sets no limit.
      batch_size: texts generated at once.
    """

    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    seed: int = 0
    num_samples: int = 1
    overflow: Overflow = "slide"
    max_prompt_tokens: int | None = None
    batch_size: int = 8

    def check(self) -> None:
        """Raises ConfigError for the first invalid value; the message begins with the field's name."""
        for name in ("max_new_tokens", "num_samples", "batch_size"):
            require_whole(name, getattr(self, name), 1)
        most = _MAX_SAMPLES
        require(self.num_samples <= most, "num_samples", f"is {self.num_samples}, must be at most {most}")
        if self.max_prompt_tokens is not None:
            require_whole("max_prompt_tokens", self.max_prompt_tokens, 1)
        are_texts = isinstance(self.stop, tuple) and all(isinstance(s, str) for s in self.stop)
        require(are_texts, "stop", f"is {self.stop!r}, must be a text or several")
        require("" not in self.stop, "stop", "has an empty string, which would stop at once")
        require_whole("seed", self.seed, 0)
        require(self.seed < 2**32, "seed", f"is {self.seed}, must be below 2**32")
        allowed = get_args(Overflow)
        require(self.overflow in allowed, "overflow", f"is {self.overflow!r}, must be one of {', '.join(allowed)}")
