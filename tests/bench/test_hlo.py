"""Counts from the text of compiled programs: kernels, bytes, FLOPs and collectives, with loops multiplied in."""

import jax
import jax.numpy as jnp
import pytest

from psann_jax.bench.hlo import array_bytes, count
from psann_jax.bench.replica_groups import crosses, device_groups

GPU = """HloModule jit_f, is_scheduled=true

%fused_slice (p0: f32[8,4,16], p1: s32[]) -> f32[4,16] {
  %p0 = f32[8,4,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,4,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,4,16}
  ROOT %bitcast = f32[4,16]{1,0} bitcast(%slice)
}

%body (carry: (s32[], f32[4,16], f32[8,4,16])) -> (s32[], f32[4,16], f32[8,4,16]) {
  %carry = (s32[], f32[4,16]{1,0}, f32[8,4,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %xs = f32[8,4,16]{2,1,0} get-tuple-element(%carry), index=2
  %x = f32[4,16]{1,0} fusion(%xs, %i), kind=kLoop, calls=%fused_slice
  %gemm = f32[4,16]{1,0} custom-call(%x, %weights), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %sum = f32[4,16]{1,0} all-reduce(%gemm), replica_groups={}, to_apply=%add
  ROOT %out = (s32[], f32[4,16]{1,0}, f32[8,4,16]{2,1,0}) tuple(%i, %sum, %xs)
}

%cheap (a: f32[4]) -> f32[4] {
  ROOT %a = f32[4]{0} parameter(0)
}

%dear (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  ROOT %negate = f32[4]{0} negate(%b)
}

ENTRY %main (x: f32[8,4,16]) -> f32[4] {
  %x0 = f32[8,4,16]{2,1,0} parameter(0)
  %loop = (s32[], f32[4,16]{1,0}, f32[8,4,16]{2,1,0}) while(%start), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %pick = f32[4]{0} conditional(%which, %y, %y), branch_computations={%cheap, %dear}
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_run_and_a_conditional_as_its_longest_branch():
    counts = count(GPU)
    assert counts.kernels == 5 * 3 + 1
    assert counts.flops == 5 * 2 * 4 * 16 * 16
    assert counts.collectives == {"all-reduce": 5}
    assert counts.collective_bytes == {"all-reduce": 5 * 4 * 16 * 4}
    assert counts.largest_collective == {"all-reduce": 4 * 16 * 4}
    assert counts.custom_calls == {"__cublas$gemm": 5}
    assert counts.open_loops == 0


def test_a_slice_counts_as_its_own_size():
    # Within the loop: the slice read and written (and its index), the product's operand and result, the all-reduce.
    per_turn = (2 * 256 + 4) + 2 * 256 + 2 * 256
    assert count(GPU).bytes == 5 * per_turn + 2 * 16


def test_loops_of_unknown_length_are_counted_once_and_said():
    counts = count(GPU.replace(', backend_config={"known_trip_count":{"n":"5"}}', ""))
    assert (counts.kernels, counts.open_loops) == (3 + 1, 1)


@pytest.mark.parametrize(
    ("type_text", "expected"),
    [
        ("f32[2,3]{1,0}", 24),
        ("(bf16[8]{0}, pred[5]{0}, s32[])", 16 + 5 + 4),
        ("f8e4m3fn[16]{0}", 16),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 0),  # in the fast memory of a TPU
        ("s4[10]{0}", 5),
    ],
)
def test_bytes_of_types(type_text, expected):
    assert array_bytes(type_text) == expected


# --- collectives between slices -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("all-reduce(%x), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("all-gather(%x), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'a'}, to_apply=%add", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("all-reduce(%x), replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("x(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("collective-permute(%x), source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("all-reduce(%x), replica_groups={}, to_apply=%add", None),
        ("all-reduce(%x), replica_groups=mesh['a'=8] {'a':(1)2}", None),
    ],
)
def test_groups_of_devices_in_every_form(attributes, groups):
    assert device_groups(attributes) == groups


@pytest.mark.parametrize(("groups", "expected"), [([[0, 1], [2, 3]], False), ([[0, 1, 2]], True), (None, True)])
def test_groups_that_cross_slices_of_two_devices(groups, expected):
    assert crosses(groups, 2) is expected


@pytest.mark.parametrize(("slice_size", "n"), [(0, 0), (4, 0), (2, 5)])
def test_collectives_between_slices_are_counted(slice_size, n):
    text = GPU.replace("replica_groups={}", "replica_groups={{0,1,2,3}}")
    counts = count(text, slice_size)
    assert counts.collectives == {"all-reduce": 5}
    assert counts.slow_collectives == ({"all-reduce": n} if n else {})
    assert counts.slow_bytes == ({"all-reduce": n * 4 * 16 * 4} if n else {})


def test_transfers_through_the_hosts_of_tpu_slices_are_collectives_between_them():
    send = (
        "  %send = (f32[4,16]{1,0}, u32[], token[]) send(%start, %after), channel_id=3, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}\n'
    )
    counts = count(GPU.replace("{}", "{{0,1,2,3}}").replace("  %x0 =", send + "  %x0 ="), 4)
    assert (counts.slow_collectives, counts.slow_bytes) == ({"all-reduce": 1}, {"all-reduce": 4 * 16 * 4})


# --- FLOPs ----------------------------------------------------------------------------------------------


def test_flops_of_a_real_program():
    def step(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]

    x, w = jnp.zeros((32, 48)), jnp.zeros((48, 48))
    counts = count(jax.jit(step).lower(x, w).compile().as_text())
    assert counts.flops == 7 * 2 * 32 * 48 * 48
    assert counts.kernels >= 7


@pytest.mark.parametrize(
    ("convolution", "flops"),
    [
        ("(%a, %b), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf", 2 * 4 * 8 * 16 * 32),
        ("(%c, %b), window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=fb0_0io->0bf", 2 * 4 * 8 * 16 * 32),
        ("(%d, %e), dim_labels=bf_io->bf", 2 * 8 * 16 * 32),
        ("(%a, %b), window={size=4 pad=3_0}, dim_labels=0bf_0io->0bf", 2 * (4 + 3 + 2 + 1) * 8 * 16 * 32),
    ],
)
def test_convolutions_that_are_products(convolution, flops):
    """TPU programs write a batch of products as a convolution whose window is as long as the batch."""
    out = "f32[8,32]{1,0}" if "bf_io" in convolution else "f32[4,8,32]{2,1,0}"
    text = f"""HloModule m

ENTRY %main (a: f32[4,8,16], b: f32[4,16,32], c: f32[16,8,1]) -> f32[4,8,32] {{
  %a = f32[4,8,16]{{2,1,0}} parameter(0)
  %b = f32[4,16,32]{{2,1,0}} parameter(1)
  %c = f32[16,8,1]{{2,1,0}} parameter(2)
  %d = f32[8,16]{{1,0}} parameter(3)
  %e = f32[16,32]{{1,0}} parameter(4)
  ROOT %x = {out} convolution{convolution}
}}
"""
    assert count(text).flops == flops
