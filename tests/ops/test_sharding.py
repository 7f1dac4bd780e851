"""The ops on 8 devices give the values of one device, without collectives on activations."""

import subprocess
import sys

import pytest

from tests.support.processes import environment

SCRIPT = r"""
import contextlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from psann_jax.ops import tiles
from psann_jax.ops.attention import alibi_slopes, causal_attention
from psann_jax.ops.causal_filter import padded_filter
from psann_jax.ops.cross_entropy import LossOptions, cross_entropy
from psann_jax.ops.sine import damped_sine

tiles._CPU_TILE = 16
mesh = jax.make_mesh((2, 2, 1, 2), ("data", "fsdp", "context", "tensor"), axis_types=(AxisType.Auto,) * 4)
BATCH = ("data", "fsdp")
B, L, H, K, F, D, V = 8, 48, 4, 8, 32, 16, 96


def draw(*shape, seed):
    return jax.random.normal(jax.random.key(seed), shape)


def check(name, fn, args, specs, allowed, mesh_for_sharded=False, rtol=1e-5):
    "`allowed`: the collectives that the compiled program may use, with the largest size of their results."
    want = jax.jit(fn)(*args)
    sharded = [jax.device_put(a, NamedSharding(mesh, P(*spec))) for a, spec in zip(args, specs, strict=True)]
    with jax.set_mesh(mesh) if mesh_for_sharded else contextlib.nullcontext():
        compiled = jax.jit(fn).lower(*sharded).compile()
    got = compiled(*sharded)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = (np.asarray(x, "float32") for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.abs(b).max()), err_msg=name)
    pattern = r"= (.*) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("
    shapes = re.findall(pattern, compiled.as_text())
    largest = max((int(np.prod([int(n) for n in dims.split(",") if n]))
                   for result, _ in shapes for dims in re.findall(r"\[([\d,]*)\]", result)), default=0)
    kinds = {kind for _, kind in shapes}
    assert kinds <= set(allowed), (name, shapes)
    assert largest <= max(allowed.values(), default=0), (name, shapes)
    return got


def value_and_gradients(fn):
    def run(dy, *args):
        y, vjp = jax.vjp(fn, *args)
        return y, vjp(dy)
    return run


params = [jnp.abs(draw(F, seed=i)) for i in range(3)]
check("sine", value_and_gradients(damped_sine), [draw(B, L, F, seed=3), draw(B, L, F, seed=4), *params],
      [(BATCH, None, "tensor")] * 2 + [("tensor",)] * 3, {"all-reduce": F})

from flax import nnx
from psann_jax.config import SineConfig
from psann_jax.nn.sine import Sine
from psann_jax.ops import kernels, sine_triton

kernels.platform = lambda: "gpu"
sine_triton.gradients = partial(sine_triton.gradients, interpret=True)
for axis, size in (("mlp", "tensor"), (None, None)):
    layer, state = nnx.split(Sine(F, SineConfig(), axis, rngs=nnx.Rngs(params=0)))
    state = nnx.to_pure_dict(state)
    names = sorted(state)

    def apply(z, *raw):
        return nnx.merge(layer, dict(zip(names, raw, strict=True)))(z)

    def layer_gradients(dy, z, *raw):
        if jax.sharding.get_abstract_mesh().empty:
            with kernels.using("plain"):
                return value_and_gradients(apply)(dy, z, *raw)
        return value_and_gradients(apply)(dy, z, *raw)

    values = [state[name] for name in names]
    args = [draw(B, L, F, seed=3), draw(B, L, F, seed=4), *values]
    spec = (BATCH, None, size)
    # If nothing shards the features, each device computes a part of them, and the gradient of z is gathered.
    check(f"sine kernel {axis}", layer_gradients, args, [spec, spec] + [(size,)] * 3, {"all-reduce": F} | (
        {} if axis else {"all-gather": B * L * F // 4}), mesh_for_sharded=True)

from psann_jax.nn import causal_filter as layer_filter
from psann_jax.ops import causal_filter_triton

for name in ("forward", "gradients"):
    setattr(causal_filter_triton, name, partial(getattr(causal_filter_triton, name), interpret=True))


def filter_gradients(dy, x, taps, reach):
    def run():
        y, vjp = jax.vjp(lambda *args: layer_filter.causal_filter(*args, reach, max_shift=8), x, taps)
        return y, vjp(dy)

    if jax.sharding.get_abstract_mesh().empty:
        with kernels.using("plain"):
            return run()
    return run()


args = [draw(B, L, D, seed=3), draw(B, L, D, seed=4), draw(9, D, seed=5), jnp.broadcast_to(jnp.arange(L) % 20, (B, L))]
check("causal filter kernel", filter_gradients, args,
      [(BATCH, None, "tensor"), (BATCH, None, "tensor"), (None, "tensor"), (BATCH,)], {"all-reduce": 9 * D},
      mesh_for_sharded=True)

from psann_jax.nn import full_attention as layer_attention
from psann_jax.ops import full_attention_triton

for name in ("forward", "gradients"):
    setattr(full_attention_triton, name, partial(getattr(full_attention_triton, name), interpret=True))


def attention_gradients(dy, *qkv):
    # The mask of dropout does not depend on the mesh.
    attend = partial(layer_attention.full_attention, dropout=tiles.Dropout(jax.random.key(0), 0.3))
    if jax.sharding.get_abstract_mesh().empty:
        with kernels.using("plain"):
            return value_and_gradients(attend)(dy, *qkv)
    return value_and_gradients(attend)(dy, *qkv)


qkv = [draw(B, 9, H, 16, seed=i).astype(jnp.bfloat16) for i in range(4)]
check("full attention kernel", attention_gradients, qkv, [(BATCH, None, "tensor")] * 4, {}, mesh_for_sharded=True,
      rtol=0.03)
kernels.platform = lambda: "cpu"

qkv = [draw(B, L, H, K, seed=i) for i in range(4)]
options = {
    "segments": {"segment_ids_BxL": jnp.arange(B * L).reshape(B, L) // 7},
    "alibi": {"alibi_slopes_H": alibi_slopes(H)},
    "dropout": {"dropout": tiles.Dropout(jax.random.key(0), 0.2)},
}
for name, kwargs in options.items():
    attend = partial(causal_attention, implementation="xla", **kwargs)
    check(name, value_and_gradients(attend), qkv, [(BATCH, None, "tensor")] * 4, {})

n_taps = 9
reach = jnp.broadcast_to(jnp.arange(L) % 20, (B, L))
check("causal filter", lambda dy, *args: (lambda y, vjp: (y, vjp(dy)[:2]))(*jax.vjp(padded_filter, *args)),
      [draw(B, L, D, seed=3), draw(B, L + n_taps - 1, D, seed=4), draw(n_taps, D, seed=5), reach],
      [(BATCH, None, "tensor"), (BATCH, None, "tensor"), (None, "tensor"), (BATCH,)], {"all-reduce": n_taps * D})

def loss(x, kernel, bias, targets, weights):
    def fn(x, kernel, bias):
        return cross_entropy(x, kernel, targets, weights, bias_V=bias, options=LossOptions(0.1), chunk_tokens=128)
    return jax.value_and_grad(fn, (0, 1, 2), has_aux=True)(x, kernel, bias)

args = [draw(B, L, D, seed=0), draw(D, V, seed=1), draw(V, seed=2),
        jax.random.randint(jax.random.key(3), (B, L), 0, V), jnp.ones((B, L))]
for kernel in ((None, None), (None, "tensor"), ("fsdp", None), ("fsdp", "tensor")):
    (_, grads) = check(f"cross entropy {kernel}", loss, args, [(BATCH,), kernel, (kernel[1],), (BATCH,), (BATCH,)],
                       {"all-reduce": D * V, "all-gather": D * V, "collective-permute": D * V})
    assert grads[0].sharding.spec[0] == BATCH
print("passed")
"""


@pytest.fixture(scope="module")
def result():
    command, env = [sys.executable, "-c", SCRIPT], environment(devices=8)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_eight_devices_give_the_values_of_one(result):
    assert result.stdout.endswith("passed\n"), result.stderr[-3000:]
