"""Comparison of kernels with their references, in interpret mode."""

import jax
import jax.numpy as jnp
import numpy as np


def differences(example, seed=0):
    """The largest difference of the values and of each gradient, as a fraction of what the `Example` tolerates."""
    inputs = example.inputs(jax.random.key(seed))
    floats = [i for i, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.floating)]

    def outputs(f):
        def run(*arrays):
            given = dict(zip(floats, arrays, strict=True))
            return f(*(given.get(i, x) for i, x in enumerate(inputs)))

        y, pull = jax.vjp(run, *(inputs[i] for i in floats))
        return y, *pull(jax.random.normal(jax.random.key(seed + 1), y.shape, y.dtype))

    pairs = zip(outputs(example.kernel), outputs(example.reference), strict=True)
    arrays = ((np.asarray(a, "float64"), np.asarray(b, "float64")) for a, b in pairs)
    return [np.abs(a - b).max() / (np.abs(b).max() or 1) / example.tolerance for a, b in arrays]
