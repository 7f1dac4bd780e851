"""Kernels of attention on 8 devices give the values of one, without communication."""

import subprocess
import sys

import pytest

from tests.support.processes import environment

SCRIPT = r"""
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from psann_jax.nn import attention
from psann_jax.nn.attention import Attention, AttentionOptions
from psann_jax.nn.partition import shard_of
from psann_jax.ops import attention_cudnn
from psann_jax.ops.attention import KERNELS, causal_attention
from psann_jax.ops.tiles import NO_DROPOUT, Dropout
from tests.support.cudnn import interpreter

fused.dot_product_attention = interpreter
attention_cudnn.documents_per_pass = lambda length: 3
for name in ("triton", "splash"):
    KERNELS[name] = partial(KERNELS[name], interpret=True)
mesh = jax.make_mesh((2, 2, 1, 2), ("data", "fsdp", "context", "tensor"), axis_types=(AxisType.Auto,) * 4)
B, L, H, K = 8, 40, 4, 8
q, k, v, dout = jax.random.normal(jax.random.key(0), (4, B, L, H, K))
segment_ids = jnp.cumsum(jax.random.bernoulli(jax.random.key(1), 0.1, (B, L)), 1).astype(jnp.int32)
batch, heads = P(("data", "fsdp")), P(("data", "fsdp"), None, "tensor", None)


def value_and_gradients(attend):
    def run(q, k, v, segment_ids, dout):
        out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, segment_ids), q, k, v)
        return out, *vjp(dout)
    return run


def of_the_layer(options, dropout, q, k, v, segment_ids):
    context = SimpleNamespace(segment_ids_BxL=segment_ids, alibi_H=None)
    return Attention._causal(SimpleNamespace(options=options), q, k, v, context, dropout)


specs = (heads, heads, heads, batch, heads)
names, dropped = ("cudnn_packed", "triton", "splash"), Dropout(jax.random.key(2), 0.3)
cases = [(name, H, 0, NO_DROPOUT) for name in names] + [(name, 2, 7, NO_DROPOUT) for name in (*names, "xla")]
for name, G, window, dropout in [*cases, ("triton", H, 0, dropped), ("triton", 2, 7, dropped)]:
    arrays = q, k[:, :, :G], v[:, :, :G], segment_ids, dout
    plain = partial(causal_attention, window=window, dropout=dropout, implementation="plain")
    want = jax.jit(value_and_gradients(lambda q, k, v, s: plain(q, k, v, segment_ids_BxL=s)))(*arrays)
    args = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs)]
    attention.choose_attention = lambda implementation, case: name
    layer = partial(of_the_layer, AttentionOptions(H * K, H, n_kv_heads=G, window=window), dropout)
    with jax.set_mesh(mesh):
        compiled = jax.jit(value_and_gradients(layer)).lower(*args).compile()
    for a, b in zip(compiled(*args), want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)
        assert a.sharding.is_equivalent_to(NamedSharding(mesh, heads), 4)
    found = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)[(-]", compiled.as_text())
    assert not found, (name, found)

axes = ("batch", None, "heads", None)
with jax.set_mesh(mesh):
    assert shard_of((8, 40, 4, 8), axes) == ((2, 40, 2, 8), "")
    reason = "cannot split batch=6 into 4 equal parts; cannot split heads=3 into 2 equal parts"
    assert shard_of((6, 40, 3, 8), axes) == ((2, 40, 2, 8), reason)
print("passed")
"""


@pytest.fixture(scope="module")
def result():
    command, env = [sys.executable, "-c", SCRIPT], environment(devices=8)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_kernels_run_on_the_parts_of_eight_devices(result):
    assert result.stdout.endswith("passed\n"), result.stderr[-3000:]
