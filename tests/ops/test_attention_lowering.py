"""Attention is lowered to the kernels of devices that are not there, by the mesh alone."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax._src.mesh import AbstractDevice
from jax.sharding import AbstractMesh, AxisType

from psann_jax.nn.attention import Attention, AttentionOptions
from psann_jax.nn.partition import MESH_AXES
from psann_jax.ops import kernels
from psann_jax.ops.tiles import NO_DROPOUT

GPU, TPU = ("gpu", "cuda"), ("tpu", "tpu")
CUDNN = ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]


@pytest.mark.parametrize(
    ("platforms", "kind", "dtype", "packed", "name", "calls"),
    [
        (GPU, "NVIDIA H100 80GB HBM3", "bfloat16", True, "cudnn_packed", CUDNN),
        (GPU, "NVIDIA A100-SXM4-80GB", "bfloat16", False, "cudnn", CUDNN),
        (GPU, "NVIDIA A100-SXM4-80GB", "bfloat16", True, "triton", ["__gpu$xla.gpu.triton"]),
        (GPU, "NVIDIA H100 80GB HBM3", "float32", False, "triton", ["__gpu$xla.gpu.triton"]),
        (GPU, "Tesla T4", "float16", True, "xla", []),
        (TPU, "TPU v5 lite", "bfloat16", True, "splash", ["tpu_custom_call"]),
        (TPU, "TPU v5 lite", "float32", False, "splash", ["tpu_custom_call"]),
        (("cpu", "cpu"), "cpu", "float32", True, "xla", []),
    ],
)
@pytest.mark.parametrize(("G", "window"), [(2, 0), (1, 9)])
def test_kernels_in_the_program(platforms, kind, dtype, packed, name, calls, G, window):
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platforms[0])
    mesh = AbstractMesh((1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)
    x, kv = (jax.ShapeDtypeStruct((2, 99, n, 64), dtype) for n in (2, G))
    segment_ids = jax.ShapeDtypeStruct((2, 99), jnp.int32)
    layer = SimpleNamespace(options=AttentionOptions(128, 2, n_kv_heads=G, window=window))

    def run(q, k, v, segment_ids, dout):
        context = SimpleNamespace(segment_ids_BxL=segment_ids if packed else None, alibi_H=None)
        out, vjp = jax.vjp(lambda *qkv: Attention._causal(layer, *qkv, context, NO_DROPOUT), q, k, v)
        return out, *vjp(dout)

    with jax.sharding.use_abstract_mesh(mesh), kernels.recorded() as found:
        lowered = jax.jit(run).trace(x, kv, kv, segment_ids, x).lower(lowering_platforms=(platforms[1],))
    assert found == {"attention": {name}}
    assert sorted(set(re.findall(r"@(__cudnn[\w$]+|__gpu[\w$.]+|tpu_custom_call)", lowered.as_text()))) == calls
