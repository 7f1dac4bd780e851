"""Compares attention of windows divided over eight devices with the plain reference, values and gradients.

Args: attention, gravity or splash.
"""

import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from psann_jax.config import MeshConfig
from psann_jax.nn import attention as nn_attention
from psann_jax.nn import gravity
from psann_jax.nn.attention import Attention, AttentionOptions
from psann_jax.nn.mesh import make_mesh
from psann_jax.nn.partition import RULES
from psann_jax.ops import attention_splash, kernels, tiles
from psann_jax.ops.attention import alibi_slopes, causal_attention
from psann_jax.ops.gravity_attention import gravity_attention
from psann_jax.ops.gravity_scores import GravityForm
from psann_jax.ops.tiles import NO_DROPOUT, Dropout
from tests.multi_device.gravity_kernel import value_and_gradients as of_gravity
from tests.ops.test_attention import documents, draw
from tests.ops.test_gravity_attention import draw as draw_gravity

HEADS = ("batch", "time", "heads", None)
AXES = (HEADS, HEADS, HEADS, ("batch", "time"), HEADS)
# Of a row: tokens of a device, heads of keys, window, dropout, ALiBi, type. Tiles of 5 tokens; 4 heads of queries.
CASES = [
    (1, 4, 0, 0.0, False, "float64"),
    (3, 2, 0, 0.3, True, "float64"),
    (5, 2, 3, 0.0, False, "float64"),
    (7, 4, 9, 0.3, False, "float64"),
    (13, 2, 1, 0.3, True, "float64"),
    (13, 4, 14, 0.0, False, "float64"),
    (13, 2, 40, 0.3, True, "float64"),
    (10, 4, 0, 0.2, False, "float64"),
    (8, 2, 0, 0.0, False, "bfloat16"),
]
SIZES = [(1, 1, 1, 8), (1, 2, 2, 2), (2, 1, 1, 4)]
FORMS = [
    GravityForm(cutoff="hard", dropout_rate=0.2),
    GravityForm(cutoff="soft", rsqrt=True),
    GravityForm(attractive=True, cutoff="decay", eps=0.1, dropout_rate=0.2),
    GravityForm(cutoff="none"),
]


def on_mesh(mesh, arrays, axes):
    """Returns the arrays on the devices."""
    return [jax.device_put(x, NamedSharding(mesh, RULES.spec(a))) for x, a in zip(arrays, axes, strict=True)]


def value_and_gradients(attend):
    def run(q, k, v, segment_ids, dout):
        out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, segment_ids), q, k, v)
        return out, *vjp(dout.astype(out.dtype))

    return run


def layer(options, alibi, dropout):
    """Returns the attention of a layer."""

    def attend(q, k, v, segment_ids):
        context = SimpleNamespace(segment_ids_BxL=segment_ids, alibi_H=alibi)
        return Attention._causal(SimpleNamespace(options=options), q, k, v, context, dropout)

    return attend


def compare(mesh, case, *, implementation="xla", tolerance=None):
    """Compares one case on a mesh; returns the implementation."""
    part, G, window, rate, has_alibi, dtype = case
    B, L, H, K = 2, part * mesh.shape["context"], 4, 8
    arrays = [jnp.asarray(a, dtype) for a in draw(B, L, H, K, seed=L + window, G=G)]
    segment_ids = jnp.asarray(documents(B, L, seed=part))
    alibi = alibi_slopes(H) if has_alibi else None
    dropout = Dropout(jax.random.key(5), rate) if rate else NO_DROPOUT
    given = (*arrays[:3], segment_ids, arrays[3])
    plain = partial(causal_attention, window=window, alibi_slopes_H=alibi, dropout=dropout, implementation="plain")
    want = jax.jit(value_and_gradients(lambda q, k, v, ids: plain(q, k, v, segment_ids_BxL=ids)))(*given)
    options = AttentionOptions(H * K, H, n_kv_heads=G, window=window, implementation=implementation)
    with jax.set_mesh(mesh), kernels.recorded() as found:
        step = jax.jit(value_and_gradients(layer(options, alibi, dropout)))
        got = step(*on_mesh(mesh, given, AXES))
    tolerance = tolerance or (1e-10 if dtype == "float64" else 0.03)
    for name, a, b in zip(("out", "q", "k", "v"), got, want, strict=True):
        a, b = (np.asarray(x, "float64") for x in (a, b))
        scale = max(np.abs(b).max(), 1)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=f"{name} {case} {dict(mesh.shape)}")
    return found["attention"]


def compare_gravity(mesh, form, *, in_score):
    """Compares gravity attention on a mesh."""
    B, L, H = 2, 13 * mesh.shape["context"], 4
    floats = list(draw_gravity(B=B, L=L, H=H, K=8, dtype="float64").values())
    if not in_score:
        floats[-1] = None
    segment_ids, key = jnp.asarray(documents(B, L, seed=3)), jax.random.key(3)
    attend = partial(gravity_attention, form, implementation="plain")
    want = of_gravity(attend, segment_ids, key, *floats)
    axes = (HEADS, HEADS, ("heads",), ("heads",), (), ("batch", "time"))
    present = [(x, a) for x, a in zip(floats, axes, strict=True) if x is not None]
    given = on_mesh(mesh, *zip(*present, strict=True)) + [None] * (not in_score)
    with jax.set_mesh(mesh), kernels.recorded() as found:
        run = jax.jit(partial(of_gravity, lambda x: gravity.attend(form, x, "auto")))
        got = run(*on_mesh(mesh, [segment_ids], [("batch", "time")]), key, *given)
    assert found == {"gravity": {"ring"}}, found
    for y, z in zip(got, want, strict=True):
        if z is not None:
            np.testing.assert_allclose(y, z, rtol=0, atol=1e-8 * max(np.abs(z).max(), 0.1), err_msg=str(form))


def compare_splash(mesh):
    """Compares the kernel for TPUs, interpreted."""
    kernels.platform, kernels.device_kind = lambda: "tpu", lambda: "TPU v5 lite"
    kernels._is_sound = lambda kernel, variant: True
    nn_attention.kernel_of_parts = partial(attention_splash.kernel_of_parts, interpret=True)
    for window in (0, 200):
        case = (128, 2, window, 0.0, False, "float32")
        assert compare(mesh, case, implementation="auto", tolerance=1e-5) == {"splash_gathered"}


def main(kind):
    """Raises AssertionError at the first difference."""
    tiles._CPU_TILE = 5
    for sizes in SIZES if kind != "splash" else ():
        mesh, first = make_mesh(MeshConfig(*sizes), all_devices=False), sizes == SIZES[0]
        with jax.enable_x64(True):
            if kind == "attention":
                for case in CASES if first else CASES[3:4]:
                    assert compare(mesh, case) == {"ring"}
            else:
                for form in FORMS if first else FORMS[:1]:
                    compare_gravity(mesh, form, in_score=form.cutoff != "soft")
    if kind == "attention":  # tiles of accelerators, which are not those of the masks
        kernels.platform, tiles._ACCELERATOR_TILE, tiles._RING_TILE = lambda: "gpu", 5, 8
        with jax.enable_x64(True):
            mesh = make_mesh(MeshConfig(*SIZES[0]), all_devices=False)
            assert compare(mesh, CASES[6]) == {"ring"}
    if kind == "splash":
        compare_splash(make_mesh(MeshConfig(1, 2, 2, 2), all_devices=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
