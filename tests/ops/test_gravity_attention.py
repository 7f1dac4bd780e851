"""ops/gravity_attention.py: the tiled implementation against the plain one, the plain one against numpy."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.ops import tiles
from psann_jax.ops.gravity_attention import (
    GravityCache,
    GravityInputs,
    GravityParams,
    cached_gravity_attention,
    gravity_attention,
)
from psann_jax.ops.gravity_scores import GravityForm

REPULSIVE = [GravityForm(cutoff=c) for c in ("hard", "soft", "decay", "none")]
ATTRACTIVE = [GravityForm(attractive=True, eps=0.05, cutoff=c) for c in ("hard", "decay", "none")]
FORMS = [*REPULSIVE, *ATTRACTIVE, GravityForm(rsqrt=True)]
every_form = pytest.mark.parametrize("form", FORMS, ids=str)


def draw(B=2, L=29, H=3, C=4, K=5, seed=0, dtype="float64", mass=True):
    """Arguments of `gravity_attention`; some tokens have no other within the radius, one is far from all others."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((B, L, H, C))
    a[:, L // 2] += 100
    arrays = {
        "a_BxLxHxC": a,
        "v_BxLxHxK": rng.standard_normal((B, L, H, K)),
        "gamma_H": rng.uniform(0.3, 2, H),
        "bias_H": rng.standard_normal(H),
        "radius": np.array(2.5),
        "mass_BxL": rng.uniform(0.2, 1.5, (B, L)) if mass else None,
    }
    return {name: None if x is None else jnp.asarray(x, dtype) for name, x in arrays.items()}


def packed(L, seed=0):
    """Segment ids of two rows, with padding at the end of the second."""
    rng = np.random.default_rng(seed)
    rows = [np.sort(rng.integers(1, 4, L)), np.sort(rng.integers(1, 3, L))]
    rows[1][L - L // 5 :] = 0
    return jnp.asarray(rows)


def by_loop(form, arrays, segment_ids=None):
    """Gravity attention with a loop over queries, written as in the formulas."""
    a, v, gamma, bias, radius, mass = (None if x is None else np.asarray(x) for x in arrays.values())
    B, L, H, _ = a.shape
    out = np.zeros(v.shape)
    for b, h, i in itertools.product(range(B), range(H), range(L)):
        seen = [j for j in range(i + 1) if segment_ids is None or segment_ids[b, i] == segment_ids[b, j]]
        d2 = np.array([np.square(a[b, i, h] - a[b, j, h]).sum() for j in seen])
        s = form.sign * gamma[h] / (d2 + form.eps) + bias[h]
        if mass is not None:
            s *= mass[b, i] * mass[b, seen]
        weight = np.ones(len(seen))
        if form.cutoff == "hard":
            weight = (d2 <= radius**2).astype(float)
        elif form.cutoff == "soft":
            s *= np.maximum(1 - d2 / radius**2, 0)
        elif form.cutoff == "decay":
            weight = np.maximum(1 - d2 / radius**2, 0)
        if form.attractive:
            weight[-1] = 0
        if not weight.any():
            weight[-1] = 1
        s = np.where(weight > 0, s, -np.inf)
        p = weight * np.exp(s - s.max())
        out[b, i, h] = (p / p.sum()) @ v[b, seen, h]
    return out


def attend(form, gamma_H, bias_H, radius, implementation="auto", **arrays):
    inputs = GravityInputs(params=GravityParams(gamma_H, bias_H, radius), **arrays)
    return gravity_attention(form, inputs, implementation=implementation)


def gradients(form, arrays, segment_ids=None, key=None, implementation="tiled"):
    """Output and all gradients for a fixed gradient of the output."""
    fixed = {name: x for name, x in arrays.items() if x is None}
    fixed |= {"segment_ids_BxL": segment_ids, "dropout_key": key, "implementation": implementation}

    @jax.jit
    def run(arrays):
        given = {name: x for name, x in arrays.items() if x is not None}
        out, vjp = jax.vjp(lambda arrays: attend(form, **arrays, **fixed), given)
        cotangent = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return out, vjp(cotangent)[0]

    return run(arrays)


def close(got, want, tolerance):
    def check(got, want):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(np.abs(want).max(), 0.1))

    jax.tree.map(check, got, want)


@every_form
@pytest.mark.parametrize("mass", [True, False])
def test_plain_equals_a_loop_over_queries(form, mass, x64):
    arrays = draw(L=11, mass=mass)
    segment_ids = packed(11)
    for seg in (None, segment_ids):
        got = attend(form, **arrays, segment_ids_BxL=seg, implementation="plain")
        np.testing.assert_allclose(got, by_loop(form, arrays, seg), rtol=1e-10, atol=1e-10)


@every_form
@pytest.mark.parametrize("mass", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_tiled_equals_plain_in_float64(form, mass, x64, monkeypatch):
    monkeypatch.setattr(tiles, "_CPU_TILE", 8)
    arrays = draw(mass=mass)
    for segment_ids in (None, packed(29)):
        got = gradients(form, arrays, segment_ids)
        want = gradients(form, arrays, segment_ids, implementation="plain")
        close(got, want, 1e-10)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
        assert (np.abs(want[1]["radius"]) > 1e-3) == (form.cutoff in ("soft", "decay"))


@every_form
@pytest.mark.parametrize("mass", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_tiled_equals_plain_in_float32(form, mass, monkeypatch):
    monkeypatch.setattr(tiles, "_CPU_TILE", 8)
    arrays = draw(mass=mass, dtype="float32", C=16)
    close(gradients(form, arrays), gradients(form, arrays, implementation="plain"), 1e-4)


def test_a_token_that_sees_only_itself_contributes_no_gradient(monkeypatch):
    """Its weight is 1 for every gamma, but the derivative of its score is -1e6."""
    monkeypatch.setattr(tiles, "_CPU_TILE", 8)
    arrays = draw(dtype="float32") | {"radius": jnp.float32(1e-3)}
    out, grads = gradients(GravityForm(), arrays)
    np.testing.assert_array_equal(out, arrays["v_BxLxHxK"])
    for name in ("gamma_H", "bias_H", "mass_BxL", "a_BxLxHxC"):
        np.testing.assert_array_equal(grads[name], 0)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 20), st.integers(1, 9), st.sampled_from(FORMS), st.integers(0, 99))
def test_tiled_equals_plain_for_any_length_and_tile(length, tile, form, seed):
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(tiles, "_CPU_TILE", tile)
        arrays, segment_ids = draw(L=length, seed=seed), packed(length, seed)
        close(gradients(form, arrays, segment_ids), gradients(form, arrays, segment_ids, implementation="plain"), 1e-9)


@every_form
def test_tiled_and_plain_drop_the_same_weights(form, x64, monkeypatch):
    monkeypatch.setattr(tiles, "_CPU_TILE", 8)
    form, arrays, key = replace(form, dropout_rate=0.3), draw(), jax.random.key(1)
    got, want = (gradients(form, arrays, key=key, implementation=name) for name in ("tiled", "plain"))
    close(got, want, 1e-10)
    assert np.abs(got[0] - gradients(form, arrays)[0]).max() > 0.1


def test_far_tokens_are_preferred_and_near_ones_if_attractive(x64):
    a = jnp.asarray([0.0, 3.0, 5.0, 5.5])[None, :, None, None] * jnp.ones((1, 4, 1, 1))
    v = jnp.eye(4)[None, :, None]
    inputs = GravityInputs(a, v, GravityParams(jnp.ones(1), jnp.zeros(1), jnp.array(100.0)))
    far = gravity_attention(GravityForm(), inputs)[0, 3, 0]
    near = gravity_attention(GravityForm(attractive=True, eps=0.05), inputs)[0, 3, 0]
    assert far[0] > far[1] > far[2] > far[3] == 0
    assert near[2] > near[1] > near[0] > near[3] == 0


@every_form
def test_cached_attention_equals_the_full_forward_pass(form, x64):
    arrays = draw(L=13)
    full = attend(form, **arrays, implementation="plain")
    a, v, mass = (jnp.pad(x, ((0, 0), (0, 4)) + ((0, 0),) * (x.ndim - 2)) for x in
                  (arrays["a_BxLxHxC"], arrays["v_BxLxHxK"], arrays["mass_BxL"]))  # fmt: skip
    index = jnp.asarray([[3, 4, 12], [0, 6, 7]])
    row = jnp.arange(2)[:, None]
    params = GravityParams(*(arrays[name] for name in ("gamma_H", "bias_H", "radius")))
    cache = GravityCache(a, v, mass)
    got = cached_gravity_attention(form, a[row, index], params, cache, index, mass_BxL=mass[row, index])
    np.testing.assert_allclose(got, full[row, index], rtol=1e-9, atol=1e-9)


def test_no_square_array_is_saved_for_the_backward_pass():
    def saved(length):
        arrays = draw(L=length, B=1, H=2, C=16, K=16, dtype="float32")
        a = arrays.pop("a_BxLxHxC")
        _, vjp = jax.vjp(lambda a: attend(GravityForm(), a_BxLxHxC=a, **arrays), a)
        return sum(x.nbytes for x in jax.tree.leaves(vjp))

    assert saved(1024) < 2.2 * saved(512)
