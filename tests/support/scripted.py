"""Text from scripted tokens instead of a network."""

from types import SimpleNamespace

import pytest

from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.sample import text as text_module
from psann_jax.sample.generation import Row
from psann_jax.sample.settings import GenerationOptions
from psann_jax.sample.text import TextSampler

BYTES = byte_tokenizer()


class Scripted:
    """A stand-in for Generation that produces script(prompt ids) for every row."""

    def __init__(self, script, prompts):
        self.rows = [Row(list(prompt)) for prompt in prompts]
        self._scripts = [script(row.prompt) for row in self.rows]

    @property
    def finished(self):
        return all(row.finish for row in self.rows)

    def advance(self, steps):
        for row, script in zip(self.rows, self._scripts, strict=True):
            if not row.finish:
                row.tokens += script[len(row.tokens) : len(row.tokens) + steps]
                row.logprobs = [-float(i) for i in range(len(row.tokens))]
                row.finish = "length" if len(row.tokens) == len(script) else None

    def stop(self, row, n_tokens):
        self.rows[row].finish = "stop"
        del self.rows[row].tokens[n_tokens:], self.rows[row].logprobs[n_tokens:]


def scripted(script, prompts=("",), tokenizer=BYTES, streamed=True, **options):
    """Completions of scripted tokens, and the streamed pieces of text of each."""
    pieces = {}

    def collect(i, piece):
        pieces.setdefault(i, []).append(piece)

    sampler = TextSampler(SimpleNamespace(vocab_size=tokenizer.vocab_size, max_length=2**16), tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "Generation", lambda _, prompts, *args, **kwargs: Scripted(script, prompts))
        settings = GenerationOptions(**options)
        done = list(sampler.complete(prompts, None, settings, on_text=collect if streamed else None))
    return done, [pieces.get(i, []) for i in range(len(done))]
