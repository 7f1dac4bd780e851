"""This package's sampler as a contender, with random weights and prompts."""

import itertools
import time
from typing import Any

import jax
import numpy as np

from psann_jax.config import Config
from psann_jax.data.random_text import random_prompts
from psann_jax.models.network import make_network
from psann_jax.nn.mesh import make_mesh
from psann_jax.sample.generation import Generation
from psann_jax.sample.sampler import MAX_STEPS, Sampler
from psann_jax.sample.settings import Sampling
from psann_jax.train.hardware import device_description, peak_memory_mb


class OurSampler:
    """Times whole generations, from prompts of one length to the last token.

    Attributes:
      facts: n_params and device.
    """

    def __init__(self, config: Config, prompt_length: int, max_new_tokens: int, sampling: Sampling):
        """Initialises the weights; model.vocab_size must be set. Compilation happens in the first `run`."""
        network = make_network(config)
        params = jax.jit(network.init)(jax.random.key(config.seed))
        # Random weights have no end of text. Any id serves, because each is rarely sampled.
        self._sampler = Sampler(
            network,
            params,
            eos_id=network.config.vocab_size - 1,
            max_length=prompt_length + max_new_tokens,
            mesh=make_mesh(config.mesh),
        )
        self._config, self._prompt_length = config, prompt_length
        self._max_new_tokens, self._sampling = max_new_tokens, sampling
        self.facts: dict[str, Any] = {"n_params": network.n_params, "device": device_description()}

    def run(self, n: int, batch_size: int) -> list[dict[str, Any]]:
        """Generates n times from different prompts.

        Returns:
          For each generation first_s (seconds to the first token of all rows), seconds (of the whole generation),
          tokens (generated in all rows), steps (after the first token) and steps_s (seconds per step in each full part
          of the text).
        """
        return [self._generate(seed, batch_size) for seed in range(n)]

    def _generate(self, seed: int, batch_size: int) -> dict[str, Any]:
        prompts = random_prompts(self._config, seed, batch_size, self._prompt_length)
        times = [time.perf_counter()]
        generation = Generation(self._sampler, prompts, self._sampling, max_new_tokens=self._max_new_tokens, seed=seed)
        generation.advance(1)
        times.append(time.perf_counter())
        n_steps = [1]
        while not generation.finished:
            generation.advance()
            times.append(time.perf_counter())
            n_steps.append(max(len(row.tokens) for row in generation.rows))
        seconds = [end - begin for begin, end in itertools.pairwise(times)]
        steps = np.diff([0, *n_steps]).tolist()
        return {
            "first_s": seconds[0],
            "seconds": sum(seconds),
            "tokens": sum(len(row.tokens) for row in generation.rows),
            "steps": sum(steps[1:]),
            # A shorter part has relatively more overhead between parts.
            "steps_s": [s / n for s, n in zip(seconds[1:], steps[1:], strict=True) if n == MAX_STEPS],
        }

    def peak_memory_mb(self) -> float:
        """See `psann_jax.train.hardware.peak_memory_mb`."""
        return peak_memory_mb()


def make(*args: Any) -> OurSampler:
    """Makes the contender, in its worker's process."""
    return OurSampler(*args)
