"""psannlm's `generate_batch` as a contender, with random weights; nothing here imports JAX."""

import time
from collections.abc import Sequence
from typing import Any

from psann_jax.bench.peer import build_model
from psann_jax.config import Config
from psann_jax.data.random_text import random_prompts
from psann_jax.utils.host import peak_resident_bytes, usable_cores


class _Ids:
    """A tokenizer whose texts are lists of ids, so that tokenisation takes no time."""

    eos_id = -1  # never sampled, so all rows get the requested length

    def encode(self, ids: Sequence[int], *, add_specials: bool) -> list[int]:
        """Returns the ids unchanged; add_specials would append an end-of-text id to the prompt."""
        del add_specials
        return list(ids)

    def decode(self, ids: Sequence[int], *, skip_specials: bool) -> list[int]:
        """Returns the ids unchanged."""
        del skip_specials
        return list(ids)


class PeerSampler:
    """Times whole calls of psannlm's `generate_batch`.

    Attributes:
      facts: n_params and versions.
    """

    def __init__(
        self, config: Config, attention: str, prompt_length: int, max_new_tokens: int, options: dict[str, Any]
    ):
        """Builds the model; psannlm moves it to the GPU if there is one, otherwise it uses all usable CPU cores.

        Args:
          config: the experiment, with model.vocab_size set.
          attention: psannlm's attn_impl, math or sdpa.
          prompt_length: tokens per prompt.
          max_new_tokens: tokens generated per row.
          options: temperature, top_k and top_p, for `generate_batch`.
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
        """Generates n times from different prompts.

        Returns:
          For each generation first_s (seconds of a call for one token, because a longer call returns nothing before its
          end), seconds (of the whole call), tokens (generated in all rows), steps (after the first token) and steps_s
          (empty).
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
        """Returns the peak resident set size of this process, in 10^6 bytes."""
        return peak_resident_bytes() / 1e6


def make(*args: Any) -> PeerSampler:
    """Makes the contender, in its worker's process."""
    return PeerSampler(*args)
