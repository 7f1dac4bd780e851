"""ops/full_attention.py: the kernels, interpreted, against the plain form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.ops import full_attention_mosaic, full_attention_triton, kernels
from psann_jax.ops.full_attention import Part, choose_full_attention, full_attention
from psann_jax.ops.tiles import NO_DROPOUT, Dropout
from tests.support.devices import pretend
from tests.support.kernels import differences


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    for module in (full_attention_triton, full_attention_mosaic):
        for name in ("forward", "gradients"):
            monkeypatch.setattr(module, name, partial(getattr(module, name), interpret=True))


def test_the_implementation_is_chosen_for_the_devices_of_the_mesh(monkeypatch):
    for platform, name in (("cpu", "plain"), ("gpu", "triton"), ("tpu", "mosaic")):
        pretend(monkeypatch, platform)
        assert choose_full_attention(jnp.bfloat16, 81, 32) == name
        assert choose_full_attention(jnp.float32, 81, 32) == "plain"
        assert choose_full_attention(jnp.bfloat16, 129, 32) == "plain"
        assert choose_full_attention(jnp.bfloat16, 81, 24) == "plain"
    with kernels.using("plain"):
        assert choose_full_attention(jnp.bfloat16, 81, 32) == "plain"


def draw(shape, dtype, seed=0):
    return [x.astype(dtype) for x in jax.random.normal(jax.random.key(seed), (4, *shape))]


def outputs(dropout, implementation, q, k, v, dout, **options):
    @jax.jit
    def run(q, k, v, dout):
        f = partial(full_attention, dropout=dropout, implementation=implementation, **options)
        out, pull = jax.vjp(f, q, k, v)
        return out, *pull(dout)

    return run(q, k, v, dout)


@pytest.mark.parametrize("kernel", ["triton", "mosaic"])
@pytest.mark.parametrize(
    ("shape", "rate"), [((3, 81, 4, 32), 0.1), ((9, 81, 2, 16), 0.0), ((1, 1, 1, 16), 0.0), ((2, 128, 1, 64), 0.3)]
)
def test_the_kernels_equal_the_plain_form(kernel, shape, rate):
    dropout = Dropout(jax.random.key(7), rate) if rate else NO_DROPOUT
    arrays = draw(shape, "float32")
    want = outputs(dropout, "plain", *arrays)
    for dtype, error in (("float32", 1e-5), ("bfloat16", 0.03)):
        got = outputs(dropout, kernel, *(x.astype(dtype) for x in arrays))
        for a, b in zip(got, want, strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(np.asarray(a, "float32"), b, atol=error * max(np.abs(b).max(), 0.1))


@pytest.mark.parametrize("kernel", ["triton", "mosaic"])
def test_a_part_has_the_dropout_mask_of_the_whole(kernel):
    dropout = Dropout(jax.random.key(7), 0.4)
    arrays = draw((4, 9, 6, 16), "float32")
    whole = outputs(dropout, "plain", *arrays)
    part = outputs(dropout, kernel, *(x[2:, :, 3:5] for x in arrays), part=Part(2, 3, 6))
    for a, b in zip(part, whole, strict=True):
        np.testing.assert_allclose(a, b[2:, :, 3:5], atol=1e-5)


@pytest.mark.parametrize("kernel", ["triton", "mosaic"])
def test_large_scores_do_not_overflow(kernel):
    q, k, v, dout = draw((1, 20, 1, 16), "bfloat16")
    got = outputs(NO_DROPOUT, kernel, 100 * q, 100 * k, v, dout)
    assert all(jnp.isfinite(x).all() for x in got)


@pytest.mark.parametrize("kernel", ["triton", "mosaic"])
def test_the_examples_of_the_kernels_pass(kernel):
    example = kernels.EXAMPLES[f"full_attention.{kernel}"]("bfloat16", 32, 0.1)
    assert max(differences(example)) < 0.8
