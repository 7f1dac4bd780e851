"""Error messages for parameters that do not fit the config."""

import jax
import jax.numpy as jnp
import pytest

from psann_jax.train.compatibility import check_compatible
from psann_jax.utils.errors import UserError


def described(**shapes):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def test_differences_are_listed_by_path():
    saved = {"a": described(kernel=(2, 3)), "old": described(b=(1,))}
    expected = {"a": described(kernel=(2, 4)), "new": described(b=(1,))}
    with pytest.raises(UserError) as caught:
        check_compatible(saved, expected, "step_3: parameters")
    assert str(caught.value).split("\n") == [
        "step_3: parameters do not fit the config",
        "  a/kernel: is float32[2, 3], must be float32[2, 4]",
        "  new/b: missing, must be float32[1]",
        "  old/b: is float32[1], which the config does not have",
    ]


def test_a_long_diff_is_shortened():
    expected = described(**{f"p{i:02}": (2,) for i in range(30)})
    with pytest.raises(UserError) as caught:
        check_compatible({}, expected, "x: parameters")
    lines = str(caught.value).split("\n")
    assert len(lines) == 12
    assert lines[-1] == "  and 20 more"


def test_equal_structures_pass():
    check_compatible(described(a=(2, 3)), described(a=(2, 3)), "x")
