"""ops/attention_choice.py: which implementation runs where."""

from functools import partial
from typing import get_args, get_type_hints

import jax.numpy as jnp
import pytest

from psann_jax.config import ConfigError, DecoderConfig, VanillaConfig
from psann_jax.ops import attention_choice, kernels
from psann_jax.ops.attention import KERNELS
from psann_jax.ops.attention_choice import AttentionCase, choose_attention, describe_attention
from psann_jax.ops.attention_reference import Variant
from tests.support.devices import pretend

H100, B200, A100, T4 = "NVIDIA H100 80GB HBM3", "NVIDIA B200", "NVIDIA A100-SXM4-40GB", "Tesla T4"
CASE = AttentionCase(jnp.bfloat16, 64)


@pytest.fixture
def on(monkeypatch):
    """Pretends that the mesh has other devices."""
    return partial(pretend, monkeypatch)


def test_a_cpu_runs_tiles_whatever_the_case():
    for case in (CASE, CASE._replace(has_segment_ids=True), CASE._replace(has_alibi=True, dropout=0.1)):
        assert choose_attention("auto", case) == describe_attention("auto", case) == "xla"


def test_hopper_and_newer_run_cudnn(on):
    for kind in (H100, B200):
        on("gpu", kind)
        assert choose_attention("auto", CASE) == choose_attention("cudnn", CASE) == "cudnn"
        packed = CASE._replace(has_segment_ids=True, head_dim=128)
        assert choose_attention("auto", packed) == choose_attention("cudnn", packed) == "cudnn_packed"
        assert describe_attention("auto", packed) == "cudnn_packed"
        assert choose_attention("plain", packed) == "plain"
        assert choose_attention("xla", packed) == "xla"


def test_packed_documents_with_small_heads_run_triton(on, monkeypatch):
    on("gpu", H100)
    packed = CASE._replace(has_segment_ids=True)
    assert choose_attention("auto", packed) == describe_attention("auto", packed) == "triton"
    assert choose_attention("cudnn", packed) == "cudnn_packed"
    assert choose_attention("auto", packed._replace(length=2048)) == "cudnn_packed"
    monkeypatch.setattr(kernels, "_is_sound", lambda kernel, variant: "triton" not in kernel)
    assert choose_attention("auto", packed) == "cudnn_packed"


def test_head_sizes_beyond_128_run_on_hopper_only(on):
    case = AttentionCase(jnp.float16, 256, has_segment_ids=True)
    on("gpu", H100)
    assert choose_attention("auto", case) == "cudnn_packed"
    on("gpu", B200)
    with pytest.raises(ConfigError, match="multiple of 8 up to 128, not 256"):
        choose_attention("cudnn", case)


def test_parts_of_a_window_are_attended_to_on_a_ring(on):
    parts = CASE._replace(length=4096, context=4)
    assert choose_attention("auto", parts) == choose_attention("xla", parts) == "ring"
    assert choose_attention("plain", parts) == "plain"
    assert choose_attention("auto", parts._replace(uneven="cannot split batch=3 into 2 equal parts")) == "xla"
    on("gpu", H100)
    for case in (parts, parts._replace(has_segment_ids=True), parts._replace(dropout=0.1)):
        assert choose_attention("auto", case) == "ring"
    assert "cannot attend to parts of a window (mesh.context=4)" in describe_attention("auto", parts)
    with pytest.raises(ConfigError, match=r"^model\.attention: triton cannot attend to parts .*; use auto or xla$"):
        choose_attention("triton", parts)


def test_a_tpu_gathers_keys_for_its_kernel_if_parts_are_whole_blocks(on):
    on("tpu", "TPU v5 lite")
    parts = CASE._replace(length=1024, context=8)
    assert choose_attention("auto", parts) == choose_attention("splash", parts) == "splash_gathered"
    assert choose_attention("xla", parts) == "ring"
    assert choose_attention("auto", parts._replace(dropout=0.1)) == "ring"
    odd = parts._replace(length=1000)
    assert choose_attention("auto", odd) == "ring"
    with pytest.raises(ConfigError, match=r"splash needs parts of a window that are multiples of 128 tokens \(data"):
        choose_attention("splash", odd)


def test_an_unknown_name_is_rejected():
    with pytest.raises(ConfigError, match=r"^model\.attention: 'flash' is unknown, choose from auto, xla"):
        choose_attention("flash", CASE)


@pytest.mark.parametrize(
    ("device", "option", "reason"),
    [
        (("cpu",), {}, "not on cpu"),
        (("tpu", "TPU v5 lite"), {}, "not on tpu"),
        (("gpu", T4), {}, "Ampere or newer"),
        (("gpu", A100), {"has_segment_ids": True}, "Hopper or newer to mask packed documents"),
        (("gpu", H100), {"dtype": jnp.float32}, "not in float32"),
        (("gpu", H100), {"dtype": jnp.float64}, "not in float64"),
        (("gpu", H100), {"head_dim": 60}, "multiple of 8 up to 256, not 60"),
        (("gpu", A100), {"head_dim": 136}, "multiple of 8 up to 128, not 136"),
        (("gpu", H100), {"has_alibi": True}, "ALiBi"),
        (("gpu", H100), {"dropout": 0.1}, "drop"),
        (("gpu", H100), {"uneven": "cannot split heads=3 into 2 equal parts"}, "heads=3"),
        (("gpu", H100), {"has_segment_ids": True, "shard_size": 2**31}, "fewer than 2\\^31"),
    ],
)
def test_cudnn_is_rejected_if_it_does_not_support_the_case(on, device, option, reason):
    on(*device)
    case = CASE._replace(**option)
    assert choose_attention("auto", case) not in ("cudnn", "cudnn_packed")
    with pytest.raises(ConfigError, match=rf"^model\.attention: cudnn .*{reason}.*; use auto or xla$"):
        choose_attention("cudnn", case)


def test_the_description_says_why_the_slow_path_runs(on):
    on("gpu", H100)
    alibi = CASE._replace(has_alibi=True)
    assert "cudnn cannot add ALiBi" in describe_attention("auto", alibi)
    assert describe_attention("xla", alibi) == "xla"  # asked for
    with kernels.using("plain"):
        assert "cudnn is turned off or failed its check" in describe_attention("auto", CASE)


def test_kernels_can_be_turned_off_unless_one_is_demanded(on):
    on("gpu", H100)
    with kernels.using("plain"), kernels.recorded() as found:
        assert choose_attention("auto", CASE) == "xla"
        assert choose_attention("cudnn", CASE) == "cudnn"
    assert found == {"attention": {"xla", "cudnn"}}


def test_other_nvidia_gpus_and_float32_run_triton(on):
    packed = CASE._replace(has_segment_ids=True)
    on("gpu", A100)
    assert choose_attention("auto", CASE) == "cudnn"
    assert choose_attention("auto", packed) == "triton"
    for kind in (A100, H100):
        on("gpu", kind)
        for case in (packed, CASE):
            case = case._replace(dtype=jnp.float32, head_dim=60)
            assert choose_attention("auto", case) == describe_attention("auto", case) == "triton"
    on("gpu", T4)
    assert choose_attention("auto", packed) == "xla"
    with pytest.raises(ConfigError, match=r"^model\.attention: triton needs an NVIDIA GPU .*; use auto or xla$"):
        choose_attention("triton", packed)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("kind", [H100, A100])
def test_gpus_drop_weights_in_triton(on, kind, dtype):
    on("gpu", kind)
    dropped = CASE._replace(dtype=dtype, dropout=0.1)
    packed = dropped._replace(has_segment_ids=True)
    options = {"group": 4}, {"window": 7}, {"group": 4, "window": 7}
    for case in (dropped, packed, *(packed._replace(**option) for option in options)):
        assert choose_attention("auto", case) == choose_attention("triton", case) == "triton"
    assert choose_attention("auto", dropped._replace(has_alibi=True)) == "xla"


def test_tpus_drop_weights_in_tiles(on):
    on("tpu", "TPU v5 lite")
    assert describe_attention("auto", CASE._replace(dropout=0.1)) == "xla (splash cannot drop attention weights)"


def test_tpus_run_splash(on):
    on("tpu", "TPU v5 lite")
    for case in (CASE, AttentionCase(jnp.float32, 128, has_segment_ids=True)):
        assert choose_attention("auto", case) == choose_attention("splash", case) == "splash"
    assert choose_attention("auto", CASE._replace(dtype=jnp.float16)) == "xla"
    with pytest.raises(ConfigError, match="splash needs a head size that is a multiple of 8 up to 256, not 20"):
        choose_attention("splash", CASE._replace(head_dim=20))
    with pytest.raises(ConfigError, match="triton runs on NVIDIA GPUs, not on tpu"):
        choose_attention("triton", CASE)


def test_a_version_of_jax_without_the_module_of_a_kernel(on, monkeypatch):
    on("tpu", "TPU v5 lite")
    monkeypatch.setitem(attention_choice._MODULES, "splash", "jax.no.such.module")
    assert describe_attention("auto", CASE) == (
        "xla (splash needs jax.no.such.module, which this version of JAX does not have)"
    )


@pytest.mark.parametrize("config", [DecoderConfig, VanillaConfig])
def test_the_config_offers_what_can_be_chosen(config):
    assert set(get_args(get_type_hints(config)["attention"])) == set(attention_choice.IMPLEMENTATIONS)


def test_a_kernel_is_checked_in_the_form_that_runs(on):
    on("tpu", "TPU v5 lite")
    case = CASE._replace(group=4, window=7, dropout=0.1, has_segment_ids=True, length=2048)
    [splash, _] = attention_choice.candidates(case)
    assert splash.variant == Variant("bfloat16", 64, 4, True, 0.1, True, False)
    [splash, _] = attention_choice.candidates(CASE._replace(dtype=jnp.float32, length=2049))
    assert splash.variant == Variant("float32", 64, 1, False, 0.0, False, True)
    [gathered, _] = attention_choice.candidates(CASE._replace(length=2048, context=4))
    assert not gathered.variant.is_long
    [gathered, _] = attention_choice.candidates(CASE._replace(length=2048, context=8))
    assert gathered.variant.is_long, "blocks of a part are of 256 tokens here"
    on("gpu", H100)
    [triton, library, _] = attention_choice.candidates(case)
    assert triton.variant == library.variant == Variant("bfloat16", 64, 4, True, 0.1, True)
    assert {f"attention.{name}" for name in (*KERNELS, "splash_gathered")} <= set(kernels.EXAMPLES)


def test_a_kernel_that_fails_with_an_option_is_used_without_it(on, monkeypatch):
    on("gpu", H100)
    monkeypatch.setattr(kernels, "_is_sound", lambda kernel, variant: not variant.has_window)
    grouped = CASE._replace(group=4, has_segment_ids=True, head_dim=128)
    assert choose_attention("auto", grouped) == "cudnn_packed"
    assert choose_attention("auto", grouped._replace(window=64)) == "xla"
    assert "failed its check" in describe_attention("auto", grouped._replace(window=64))
