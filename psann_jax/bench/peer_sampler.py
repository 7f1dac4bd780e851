"""psannlm's `generate_batch` as a contender, on a model of random weights. Nothing here imports jax."""

import time
from collections.abc import Sequence
from typing import Any

from psann_jax.bench.peer import build_model, resident_peak_mb, usable_cores
from psann_jax.bench.random_text import random_prompts
from psann_jax.config import Config


class _Ids:
    """A tokenizer whose texts are lists of ids, so that no time goes into text."""

    eos_id = -1  # none of the ids, so every row is as long as it was asked to be

    def encode(self, ids: Sequence[int], *, add_specials: bool) -> list[int]:
        """The ids themselves: psannlm would put an end of text behind a prompt."""
        del add_specials
        return list(ids)

    def decode(self, ids: Sequence[int], *, skip_specials: bool) -> list[int]:
        """The ids themselves."""
        del skip_specials
        return list(ids)


class PeerSampler:
    """Whole calls of psannlm's `generate_batch`.

    Attributes:
      facts: n_params and versions.
    """

    def __init__(
        self, config: Config, attention: str, prompt_length: int, max_new_tokens: int, options: dict[str, Any]
    ):
        """Builds the model on the GPU if there is one, else on all usable CPU cores.

        Args:
          config: with model.vocab_size set.
          attention: math or sdpa.
          prompt_length: tokens.
          max_new_tokens: a row.
          options: of `generate_batch`: temperature, top_k, top_p.
        """
        import torch
        from psannlm.lm.api import psannLM

        torch.set_num_threads(usable_cores())
        torch.manual_seed(config.seed)
        model = build_model(config.model, attention)
        sizes = {name: getattr(config.model, name) for name in ("vocab_size", "d_model", "n_layers", "n_heads")}
        self._lm = psannLM(base=config.model.base, **sizes)
        self._lm._model, self._lm._tokenizer = model, _Ids()
        self._config, self._prompt_length = config, prompt_length
        self._max_new_tokens, self._options = max_new_tokens, options
        self.facts: dict[str, Any] = {"n_params": sum(p.numel() for p in model.parameters())}

    def run(self, n: int, batch_size: int) -> list[dict[str, Any]]:
        """Generates n times, each time from other prompts.

        Returns:
          Of each: first_s, seconds of a call for one token, as a longer one gives nothing before its end; seconds,
          of the whole; tokens, produced in all rows; steps, after the first token; steps_s, empty.
        """
        results = []
        for seed in range(n):
            prompts = random_prompts(self._config, seed, batch_size, self._prompt_length)
            first_s, _ = self._timed(prompts, 1)
            seconds, rows = self._timed(prompts, self._max_new_tokens)
            n_tokens, steps = sum(map(len, rows)), self._max_new_tokens - 1
            results.append({"first_s": first_s, "seconds": seconds, "tokens": n_tokens, "steps": steps, "steps_s": []})
        return results

    def _timed(self, prompts: list[list[int]], n_tokens: int) -> tuple[float, list[list[int]]]:
        began = time.perf_counter()
        rows = self._lm.generate_batch(prompts, max_new_tokens=n_tokens, **self._options)
        return time.perf_counter() - began, rows

    def peak_memory_mb(self) -> float:
        """The peak resident set of this process, in 10^6 bytes."""
        return resident_peak_mb()


def make(*args: Any) -> PeerSampler:
    """The contender, in the process of its worker."""
    return PeerSampler(*args)
