"""A training loop outside the project: the documented one trains, and a call of a network gives its logits."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.models import build
from tests.support.variants import quick_variants, randomised, variant

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_documented_loop_trains():
    section = PAGE.read_text().partition("## Your own training loop")[2]
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert abs(names["losses"][0] - np.log(64)) < 0.5
    assert names["losses"][-1] < 1


@quick_variants
def test_a_call_gives_the_logits(name):
    network = build(variant(name, vocab_size=11))
    params = randomised(network)
    tokens = jnp.arange(12).reshape(2, 6) % 11

    @jax.jit
    def both(params):
        model = network.merge(params)
        return model(tokens), model.logits(model.hidden(tokens)[0])

    called, expected = both(params)
    assert (called.shape, called.dtype) == ((2, 6, 11), jnp.float32)
    np.testing.assert_array_equal(called, expected)
