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
from psann_jax.ops.tiles import NO_DROPOUT, Dropout

GPU, TPU = ("gpu", "cuda"), ("tpu", "tpu")
CUDNN = ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]


@pytest.mark.parametrize(
    ("platforms", "kind", "dtype", "packed", "name", "calls"),
    [
        (GPU, "NVIDIA H100 80GB HBM3", "bfloat16", True, "triton", ["__gpu$xla.gpu.triton"]),
        (GPU, "NVIDIA H100 80GB HBM3", "bfloat16", False, "cudnn", CUDNN),
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
    options = AttentionOptions(128, 2, n_kv_heads=G, window=window)
    check(platforms, kind, dtype, packed, (name, calls), options)


@pytest.mark.parametrize(("G", "window"), [(2, 0), (1, 9)])
def test_wide_heads_of_packed_documents_run_in_cudnn(G, window):
    options = AttentionOptions(256, 2, n_kv_heads=G, window=window)
    check(GPU, "NVIDIA H100 80GB HBM3", "bfloat16", True, ("cudnn_packed", CUDNN), options)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("G", "window"), [(2, 0), (1, 9)])
def test_dropout_runs_in_the_kernel_on_gpus(dtype, G, window):
    options = AttentionOptions(128, 2, n_kv_heads=G, window=window, dropout=0.1)
    check(GPU, "NVIDIA H100 80GB HBM3", dtype, True, ("triton", ["__gpu$xla.gpu.triton"]), options)


def check(platforms, kind, dtype, packed, expected, options):
    """Lowers a layer and its gradients for a device; checks the implementation and the calls of its kernels."""
    name, calls = expected
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platforms[0])
    mesh = AbstractMesh((1,) * 4, MESH_AXES, axis_types=(AxisType.Auto,) * 4, abstract_device=device)
    x, kv = (jax.ShapeDtypeStruct((2, 299, n, options.d_model // 2), dtype) for n in (2, options.kv_heads))
    segment_ids = jax.ShapeDtypeStruct((2, 299), jnp.int32)
    layer = SimpleNamespace(options=options)
    dropout = Dropout(jax.random.key(0), options.dropout) if options.dropout else NO_DROPOUT

    def run(q, k, v, segment_ids, dout):
        context = SimpleNamespace(segment_ids_BxL=segment_ids if packed else None, alibi_H=None)
        out, vjp = jax.vjp(lambda *qkv: Attention._causal(layer, *qkv, context, dropout), q, k, v)
        return out, *vjp(dout)

    with jax.sharding.use_abstract_mesh(mesh), kernels.recorded() as found:
        lowered = jax.jit(run).trace(x, kv, kv, segment_ids, x).lower(lowering_platforms=(platforms[1],))
    assert found == {"attention": {name}}
    assert sorted(set(re.findall(r"@(__cudnn[\w$]+|__gpu[\w$.]+|tpu_custom_call)", lowered.as_text()))) == calls
