"""ops/attention_cudnn.py: what cuDNN is given, with an interpreter in its place."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo as fused

from psann_jax.ops import attention_cudnn, kernels
from psann_jax.ops.attention_cudnn import cudnn_attention, documents_per_pass
from psann_jax.ops.attention_documents import document_numbers, lengths_and_starts
from psann_jax.ops.attention_reference import Variant
from tests.ops.test_attention import documents, draw
from tests.support.attention import at_borders, check_example, compare_with_plain, plain, value_and_gradients
from tests.support.cudnn import interpreter


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(fused, "dot_product_attention", interpreter)


def compare(segment_ids, dtype="float32", tolerance=2e-6, seed=0):
    compare_with_plain(cudnn_attention, draw(*segment_ids.shape, 2, 8, seed=seed), segment_ids, dtype, tolerance)


@settings(deadline=None, max_examples=6)
@given(B=st.integers(1, 3), L=st.integers(1, 40), n=st.sampled_from([2, 3, 8, 64]), seed=st.integers(0, 99))
def test_equals_plain_for_any_number_of_documents(B, L, n, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_cudnn, "documents_per_pass", lambda length: n)
        compare(documents(B, L, seed), seed=seed)


@pytest.mark.parametrize(
    ("L", "G", "window"), [(20, 1, 0), (21, 2, 1), (20, 4, 5), (33, 2, 6), (33, 1, 32), (33, 2, 33), (8, 1, 99)]
)
def test_grouped_heads_and_sliding_windows(L, G, window, monkeypatch):
    monkeypatch.setattr(attention_cudnn, "documents_per_pass", lambda length: 3)
    inputs = draw(2, L, 4, 8, G=G)
    compare_with_plain(cudnn_attention, inputs, documents(2, L, 3), "float32", 2e-6, window)


@pytest.mark.parametrize(("G", "window"), [(1, 0), (2, 1), (2, 7), (4, 20)])
def test_grouped_heads_and_sliding_windows_of_whole_rows(G, window, monkeypatch):
    """With JAX's own implementation in place of its call of cuDNN."""
    original = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, implementation, **k: original(*a, **k))
    compare_with_plain(cudnn_attention, draw(2, 20, 4, 8, G=G), None, "float32", 2e-6, window)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.03), ("float16", 0.005)])
def test_low_precision(dtype, tolerance):
    compare(at_borders(70, 16), dtype, tolerance)


def test_rows_with_one_token_per_document():
    compare(np.stack([np.arange(1, 71), np.ones(70), np.repeat([1, 0], [1, 69])]).astype("int32"))


def test_no_document_sees_another_even_if_an_id_appears_again():
    segment_ids = np.array([[1] * 5 + [2] * 6 + [1] * 7 + [0] * 2])
    inputs = [jnp.asarray(a, "float32") for a in draw(1, 20, 2, 8)]
    out, grads = value_and_gradients(cudnn_attention, segment_ids, *inputs)
    for part in (slice(0, 5), slice(5, 11), slice(11, 18), slice(18, 20)):
        alone = value_and_gradients(plain, None, *(a[:, part] for a in inputs))
        got = jax.tree.map(lambda a, part=part: a[:, part], (out, grads))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, alone)


def test_layout_that_jax_makes_of_ours():
    """cuDNN gets all documents of the batch in one list, each with its first number in the packed array."""
    segment_ids = np.array([[1, 1, 2, 3, 3, 3], [1, 1, 1, 1, 1, 1], [1, 2, 2, 0, 0, 0]])
    lengths, starts = lengths_and_starts(document_numbers(segment_ids), 0, 4)
    offsets = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
    H, K = 2, 8
    x = jnp.zeros((3, 6, H, K))
    lengths, _, offsets, _ = fused._fix_seqlen_offsets(lengths, lengths, offsets, offsets, x, x)
    assert lengths.ravel().tolist() == [2, 1, 3, 6, 1, 2, 3, *[0] * 5]
    assert (offsets.ravel() // (H * K)).tolist() == [0, 2, 3, 6, 12, 13, 15, *[18] * 8]


def test_only_one_output_is_saved(monkeypatch):
    """Traced with JAX's own function, which saves queries, keys, values, the output and statistics."""
    monkeypatch.undo()
    B, L, H, K = 2, 64, 2, 8

    def count(q, k, v, segment_ids):
        _, vjp = jax.vjp(lambda q, k, v: cudnn_attention(q, k, v, segment_ids), q, k, v)
        sizes.update({id(leaf): leaf.size for leaf in jax.tree.leaves(vjp)})

    sizes = {}
    jax.eval_shape(count, *[jax.ShapeDtypeStruct((B, L, H, K), jnp.bfloat16)] * 3, documents(B, L, 1))
    n = documents_per_pass(L)
    assert sum(sizes.values()) <= 4 * B * L * H * K + B * n * H * L + B * L + 2 * B * (2 * n + 1)


def test_documents_per_pass():
    assert [documents_per_pass(L) for L in (1, 5, 100, 1024, 8192, 10**6)] == [2, 5, 16, 16, 32, 32]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("L", "G", "window"), [(1, 2, 0), (63, 2, 0), (64, 2, 0), (63, 1, 0), (63, 1, 9)])
def test_a_program_can_be_traced_where_no_gpu_is(packed, L, G, window, monkeypatch):
    monkeypatch.undo()
    x, kv = (jax.ShapeDtypeStruct((2, L, n, 64), jnp.bfloat16) for n in (2, G))
    segment_ids = jnp.ones((2, L), jnp.int32) if packed else None

    def run(q, k, v, dout):
        return jax.vjp(lambda q, k, v: cudnn_attention(q, k, v, segment_ids, window=window), q, k, v)[1](dout)

    text = jax.jit(run).trace(x, kv, kv, x).lower(lowering_platforms=("cuda",)).as_text()
    lengths = re.findall(r"sliding_window_length\\22: (\d+)", text)
    assert set(map(int, lengths)) == {window}
    assert text.count("__cudnn$fmhaSoftmaxBackward") >= 1
    assert ("PADDING_CAUSAL" in text) == packed
    with pytest.raises((RuntimeError, NotImplementedError)):  # the checks of JAX are back
        fused.check_is_flash_attention(
            *[jnp.zeros((1, 8, 1, 8))] * 3, 0, fused.check_cudnn_version(), False, True, True
        )


def test_whole_rows_are_causal(monkeypatch):
    q, k, v = (jnp.asarray(a, "bfloat16") for a in draw(1, 20, 2, 8, n=3))
    asked = []

    def spy(*args, implementation, **kwargs):
        asked.append(implementation)
        return original(*args, implementation="xla", **kwargs)

    original = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    got, want = cudnn_attention(q, k, v, None), plain(q, k, v, None)
    assert asked == ["cudnn"]
    np.testing.assert_allclose(np.asarray(got, "float32"), np.asarray(want, "float32"), atol=0.03)


def test_signature_of_the_private_function(monkeypatch):
    """Fails when JAX changes the function that `attention_cudnn` calls."""
    monkeypatch.undo()
    parameters = inspect.signature(fused.dot_product_attention).parameters
    assert list(parameters)[:3] == ["query", "key", "value"]
    used = {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "scale", "mask_type", "sliding_window_length"}
    assert used <= set(parameters)
    assert fused.MaskType.PADDING_CAUSAL.value == 3
    assert fused.has_padding(fused.MaskType.PADDING_CAUSAL)
    for name in ("check_cudnn_version", "check_compute_capability", "is_cuda_compute_capability_equal"):
        assert callable(getattr(fused, name))


@pytest.mark.parametrize("has_window", [False, True])
@pytest.mark.parametrize(("name", "documents"), [("attention.cudnn", False), ("attention.cudnn_packed", True)])
def test_examples(name, documents, has_window, monkeypatch):
    original = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, implementation, **k: original(*a, **k))
    variant = Variant("bfloat16", 32, group=2, has_window=has_window, has_segment_ids=documents)
    example = kernels.EXAMPLES[name](*variant)
    check_example(example, example.kernel)


@pytest.mark.parametrize("remat", [False, True])
def test_in_a_scan_over_layers(remat, monkeypatch):
    monkeypatch.setattr(attention_cudnn, "documents_per_pass", lambda length: 2)
    segment_ids = documents(2, 20, 3)
    x, _, _, dout = (jnp.asarray(a, "float32") for a in draw(2, 20, 2, 8))

    def gradient(attend):
        def layer(x, scale):
            return x + attend(scale * x, x, x, segment_ids), None

        step = jax.checkpoint(layer) if remat else layer
        return jax.jit(jax.grad(lambda x: jnp.vdot(dout, jax.lax.scan(step, x, jnp.array([0.5, 1, 2]))[0])))(x)

    np.testing.assert_allclose(gradient(cudnn_attention), gradient(plain), rtol=1e-4, atol=1e-4)
