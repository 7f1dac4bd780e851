"""A config's own sampler as a contender, with random weights and random prompts."""

import itertools
import time
from typing import Any

import jax
import numpy as np

from psann_jax.bench.random_text import random_prompts
from psann_jax.config import Config
from psann_jax.nn.mesh import make_mesh
from psann_jax.sample.generation import Generation
from psann_jax.sample.next_token import Sampling
from psann_jax.sample.sampler import SEGMENT, Sampler
from psann_jax.tasks.lm import make_network
from psann_jax.train.hardware import device_description, peak_memory_mb


class OurSampler:
    """Whole generations, from prompts of one length to the last token.

    Attributes:
      facts: n_params and device.
    """

    def __init__(self, config: Config, prompt_length: int, max_new_tokens: int, sampling: Sampling):
        """Makes the weights; model.vocab_size must be set. Nothing is compiled before the first `run`."""
        network = make_network(config, config.model.vocab_size)
        params = jax.jit(network.init)(jax.random.key(config.seed))
        # No text has an end that the weights know of, so one of the ids, which they hardly ever draw, stands for it.
        self._sampler = Sampler(
            network,
            params,
            eos_id=config.model.vocab_size - 1,
            max_length=prompt_length + max_new_tokens,
            mesh=make_mesh(config.mesh),
        )
        self._config, self._prompt_length = config, prompt_length
        self._max_new_tokens, self._sampling = max_new_tokens, sampling
        self.facts: dict[str, Any] = {"n_params": network.n_params, "device": device_description()}

    def run(self, n: int, batch_size: int) -> list[dict[str, Any]]:
        """Generates n times, each time from other prompts.

        Returns:
          Of each: first_s, seconds to the first token of all rows; seconds, of the whole; tokens, produced in all
          rows; steps, after the first token; steps_s, seconds of a step in each full part of the text.
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
        laps = [end - begin for begin, end in itertools.pairwise(times)]
        steps = np.diff([0, *n_steps]).tolist()
        return {
            "first_s": laps[0],
            "seconds": sum(laps),
            "tokens": sum(len(row.tokens) for row in generation.rows),
            "steps": sum(steps[1:]),
            # A part that is shorter than the others has more of the overhead between parts.
            "steps_s": [lap / n for lap, n in zip(laps[1:], steps[1:], strict=True) if n == SEGMENT],
        }

    def peak_memory_mb(self) -> float:
        """See `psann_jax.train.hardware.peak_memory_mb`."""
        return peak_memory_mb()


def make(*args: Any) -> OurSampler:
    """The contender, in the process of its worker."""
    return OurSampler(*args)
