"""nn/layers.py: stacked parameters as one array for each layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.nn.layers import indexed, join_layers, split_layers, unstacked
from psann_jax.nn.partition import ParamInfo


@pytest.mark.parametrize("layers_of", [indexed, unstacked])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 4), (5, 2, 3)])
def test_arrays_of_layers_and_their_gradient(shape, layers_of):
    x, g = (jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32) for seed in (0, 1))
    parts, vjp = jax.vjp(layers_of, x)
    for part, row in zip(parts, x, strict=True):
        np.testing.assert_array_equal(part, row)
    np.testing.assert_array_equal(vjp(list(g))[0], g)


def test_only_stacked_parameters_are_split_and_joined_again():
    infos = {
        "a": ParamInfo("matrix", ("layers", None)),
        "b": ParamInfo("norm", ("embed",)),
        "c": ParamInfo("alpha", ()),
    }
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(3.0), "c": jnp.asarray(1.0)}
    split = split_layers(tree, infos)
    assert [row.tolist() for row in split["a"]] == [[0, 1, 2], [3, 4, 5]]
    assert split["b"] is tree["b"]
    jax.tree.map(np.testing.assert_array_equal, join_layers(split, infos), tree)
