"""ops/gravity_kernel.py: the kernels, run by JAX's interpreter, against the plain reference."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config.checks import ConfigError
from psann_jax.ops import gpu_kinds, kernels
from psann_jax.ops import gravity_kernel as module
from psann_jax.ops.dropout import row_words
from psann_jax.ops.gravity_attention import choose_for, gravity_attention
from psann_jax.ops.gravity_kernel import GravityCase, gravity_kernel, kernel_target, weighted_values
from psann_jax.ops.gravity_scores import GravityForm, GravityInputs, GravityParams
from psann_jax.ops.tile_loop import Target
from tests.ops.test_gravity_attention import draw, packed
from tests.support.devices import pretend
from tests.support.kernels import differences

PLATFORMS = pytest.mark.parametrize("platform", ["gpu", "tpu"])
DROPOUT = {"dropout_rate": 0.3}
# Every sign, cutoff and way to divide; with and without mass, documents and dropout.
CASES = {
    "hard": (GravityForm(**DROPOUT), True, True),
    "hard_rsqrt": (GravityForm(rsqrt=True), True, False),
    "soft": (GravityForm(cutoff="soft"), True, True),
    "decay": (GravityForm(cutoff="decay", **DROPOUT), False, False),
    "none": (GravityForm(cutoff="none"), False, True),
    "attractive_hard": (GravityForm(attractive=True, eps=0.05), True, False),
    "attractive_decay": (GravityForm(attractive=True, cutoff="decay", eps=0.05, **DROPOUT), True, True),
    "attractive_none": (GravityForm(attractive=True, cutoff="none", eps=0.05), False, False),
}


def make(L=37, mass=True, dtype="float32", seed=0, C=4, K=6, segment_ids=None):
    """Inputs of the kernel."""
    arrays = draw(L=L, mass=mass, dtype="float32", C=C, K=K, seed=seed)
    params = GravityParams(arrays["gamma_H"], arrays["bias_H"], arrays["radius"])
    v = arrays["v_BxLxHxK"].astype(dtype)
    return GravityInputs(arrays["a_BxLxHxC"], v, params, arrays["mass_BxL"], segment_ids)


def documents(*rows):
    """Segment ids of rows of documents with these lengths; the last one of a row is padding."""
    return jnp.array([np.repeat([*range(5, 5 + len(row) - 1), 0], row) for row in rows], jnp.int32)


# Documents of one token, and borders on both sides of the tile border at 16 and on those at 16 and 32.
BORDERS = documents([1, 14, 1, 1, 15, 5], [16, 16, 1, 4])


def words(x, seed=1):
    B, _, H, _ = x.v_BxLxHxK.shape
    return row_words(jax.random.key(seed), (B, H))


def gradients(attend, form, x, words=None):
    """Output and gradients for a fixed gradient of the output."""

    @jax.jit
    def run(floats):
        def out(floats):
            return attend(form, x._replace(**floats), words)

        out, vjp = jax.vjp(out, floats)
        return out, vjp(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype))[0]

    floats = {name: getattr(x, name) for name in ("a_BxLxHxC", "v_BxLxHxK", "params", "mass_BxL")}
    return run({name: value for name, value in floats.items() if value is not None})


def kernel(platform, T=16):
    return partial(gravity_kernel, target=Target(platform, T, interpret=True))


def close(got, want, tolerance):
    def check(got, want):
        got, want = (np.asarray(y, np.float64) for y in (got, want))
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 0.1))

    jax.tree.map(check, got, want)


# The platforms differ in the loops, not in the forms.
ON_TPU = ("hard", "soft", "attractive_decay")


@pytest.mark.parametrize(("case", "platform"), [*((c, "gpu") for c in CASES), *((c, "tpu") for c in ON_TPU)])
def test_kernel_equals_the_reference(case, platform):
    form, mass, has_documents = CASES[case]
    x = make(mass=mass, segment_ids=BORDERS if has_documents else None)
    drawn = words(x) if form.dropout_rate else None
    got, want = (gradients(attend, form, x, drawn) for attend in (kernel(platform), weighted_values))
    close(got, want, 1e-4)
    assert (np.abs(got[1]["params"].radius) > 1e-3) == (form.cutoff in ("soft", "decay"))


def against_float64(platform, form, x, tolerance):
    got = gradients(kernel(platform), form, x)
    with jax.enable_x64(True):
        want = gradients(weighted_values, form, jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), x))
    assert want[0].dtype == jnp.float64
    close(got, want, tolerance)


@PLATFORMS
@pytest.mark.parametrize("C", [1, 5, pytest.param(16, marks=pytest.mark.slow)])
def test_any_number_of_coordinates(platform, C):
    """A large eps keeps scores small, as near tokens of one coordinate need."""
    against_float64(platform, GravityForm(cutoff="none", eps=0.05), make(L=20, C=C), 1e-4)


@PLATFORMS
def test_weights_of_near_tokens_are_as_exact_as_their_scores(platform):
    """A token sees, besides itself, one token so near that the score is -2572, which float32 rounds by up to 2^-13.

    Compilers differ in where they fuse a product and a sum, and a score can be rounded differently in both passes.
    """
    against_float64(platform, GravityForm(cutoff="none"), make(L=20, C=1), 2**-11)


@PLATFORMS
def test_bf16_values(platform):
    form, x = CASES["soft"][0], make(dtype="bfloat16", segment_ids=BORDERS)
    got, want = (gradients(attend, form, x) for attend in (kernel(platform), weighted_values))
    assert got[0].dtype == got[1]["v_BxLxHxK"].dtype == jnp.bfloat16
    assert got[1]["a_BxLxHxC"].dtype == jnp.float32
    close(got, want, 0.02)


@settings(max_examples=3, deadline=None)
@given(st.integers(1, 40), st.sampled_from([16, 32]), st.sampled_from(["gpu", "tpu"]), st.integers(0, 99))
def test_any_length(length, T, platform, seed):
    x = make(L=length, seed=seed, segment_ids=packed(length, seed))
    got, want = (gradients(attend, GravityForm(), x) for attend in (kernel(platform, T), weighted_values))
    close(got, want, 1e-4)


def test_the_reference_equals_plain_attention():
    x = make(segment_ids=BORDERS)
    for form, *_ in CASES.values():
        form = replace(form, dropout_rate=0.0)
        want = gravity_attention(form, x, implementation="plain")
        np.testing.assert_allclose(weighted_values(form, x, None), want, rtol=1e-6, atol=1e-6)


@PLATFORMS
def test_a_token_that_sees_only_itself_contributes_no_gradient(platform):
    x = make(L=20, segment_ids=jnp.arange(20)[None].repeat(2, 0))
    form = {"gpu": GravityForm(), "tpu": GravityForm(attractive=True, cutoff="decay", eps=0.05)}[platform]
    out, grads = gradients(kernel(platform), form, x)
    np.testing.assert_array_equal(out, x.v_BxLxHxK)
    for name in ("a_BxLxHxC", "params", "mass_BxL"):
        jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), grads[name])


@PLATFORMS
def test_a_document_sees_nothing_of_another(platform):
    x = make(segment_ids=BORDERS)
    changed = x._replace(
        a_BxLxHxC=jnp.where((BORDERS == 6)[..., None, None], 3.0, x.a_BxLxHxC),
        v_BxLxHxK=jnp.where((BORDERS == 6)[..., None, None], 1e3, x.v_BxLxHxK),
        mass_BxL=jnp.where(BORDERS == 6, 9.0, x.mass_BxL),
    )
    before, after = (np.asarray(kernel(platform)(GravityForm(), y, None)) for y in (x, changed))
    np.testing.assert_array_equal(before[BORDERS != 6], after[BORDERS != 6])


def test_dropped_weights_do_not_depend_on_tiles_or_platform():
    x = make()
    form = GravityForm(**DROPOUT)
    first, *others = (kernel(p, T)(form, x, words(x)) for p, T in (("gpu", 16), ("gpu", 32), ("tpu", 16)))
    for other in others:
        close(other, first, 1e-5)
    assert np.abs(first - kernel("gpu")(form, x, words(x, seed=2))).max() > 0.1
    assert np.abs(first - kernel("gpu")(form, x, None)).max() > 0.1


def test_rows_and_heads_drop_independent_weights_at_the_given_rate():
    L, (B, H) = 64, (4, 8)
    index = jnp.arange(L)
    drawn = row_words(jax.random.key(0), (B, H))[:, :, None, None]
    factors = module.dropout_factors(0.3, index[:, None], index, drawn[..., 0], drawn[..., 1])
    dropped = np.asarray(factors == 0, float).reshape(B * H, L * L)
    np.testing.assert_allclose(factors.max(), 1 / 0.7, rtol=1e-6)
    np.testing.assert_allclose(dropped.mean(1), 0.3, atol=5 * np.sqrt(0.21 / L**2))
    correlations = np.corrcoef(dropped) - np.eye(B * H)
    assert np.abs(correlations).max() < 5 / L
    assert np.abs(np.corrcoef(dropped.T[: L * 2]) - np.eye(L * 2)).mean() < 1.5 / np.sqrt(B * H)


def test_saved_arrays_are_linear_in_length():
    def saved(length):
        x = make(L=length, C=16, K=16)
        _, vjp = jax.vjp(lambda a: kernel("gpu", 64)(GravityForm(), x._replace(a_BxLxHxC=a), None), x.a_BxLxHxC)
        return sum(y.nbytes for y in jax.tree.leaves(vjp))

    assert saved(256) < 2.2 * saved(128)


def test_inside_scan_and_checkpoint():
    x, form = make(L=17), GravityForm()

    def loss(attend, v):
        step = jax.checkpoint(lambda v, _: (attend(form, x._replace(v_BxLxHxK=v), None), None))
        return jnp.sum(jnp.sin(jax.lax.scan(step, v, jnp.arange(2))[0]))

    got, want = (jax.jit(jax.grad(partial(loss, attend)))(x.v_BxLxHxK) for attend in (kernel("gpu"), weighted_values))
    close(got, want, 1e-4)


def test_cpus_use_the_tiled_form():
    with kernels.recorded() as found:
        assert choose_for(GravityForm(), make(), "auto") == "tiled"
    assert found == {"gravity": {"tiled"}}


@PLATFORMS
def test_gpus_and_tpus_use_the_kernel_where_it_is_supported(platform, monkeypatch):
    pretend(monkeypatch, platform)
    assert (
        choose_for(GravityForm(), make(), "auto")
        == choose_for(GravityForm(), make(dtype="bfloat16"), "pallas")
        == "pallas"
    )
    for x in (make(K=129), make(C=65)):
        assert choose_for(GravityForm(), x, "auto") == "tiled"
    assert (choose_for(GravityForm(), make(dtype="float16"), "auto") == "tiled") == (platform == "tpu")
    with jax.enable_x64(True):
        x = make(dtype="float64")
        assert choose_for(GravityForm(), x, "auto") == "tiled"
        x = x._replace(a_BxLxHxC=x.a_BxLxHxC.astype("float64"), v_BxLxHxK=x.v_BxLxHxK.astype("float32"))
        assert choose_for(GravityForm(), x, "auto") == "tiled"
    for name in ("tiled", "plain"):
        assert choose_for(GravityForm(), make(), name) == name
    with kernels.using("plain"):
        assert choose_for(GravityForm(), make(), "auto") == "tiled"
    monkeypatch.setattr(kernels, "_is_sound", lambda kernel, variant: kernel != "gravity.pallas")
    assert choose_for(GravityForm(), make(), "auto") == "tiled"


@PLATFORMS
def test_parts_of_a_window_are_attended_to_on_a_ring(platform, monkeypatch):
    pretend(monkeypatch, platform)
    monkeypatch.setattr(kernels, "window_parts", lambda: 4)
    assert choose_for(GravityForm(), make(), "auto") == choose_for(GravityForm(), make(), "tiled") == "ring"
    assert choose_for(GravityForm(), make(), "auto", even=False) == "tiled"
    assert choose_for(GravityForm(), make(), "plain") == "plain"
    with pytest.raises(ConfigError, match=r"^model.attention: pallas cannot attend to parts .*context=4\); use auto"):
        choose_for(GravityForm(), make(), "pallas")


def test_an_implementation_that_cannot_run_is_named(monkeypatch):
    with pytest.raises(ConfigError, match=r"^model.attention: pallas runs on GPUs and TPUs, not on cpu; use auto"):
        choose_for(GravityForm(), make(), "pallas")
    with pytest.raises(ConfigError, match="'flash' is unknown, choose from auto, pallas"):
        choose_for(GravityForm(), make(), "flash")
    pretend(monkeypatch, "gpu")
    with pytest.raises(ConfigError, match="supports head sizes up to 128, not 256"):
        gravity_attention(GravityForm(), make(K=256), implementation="pallas")
    monkeypatch.setattr(gpu_kinds, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="this version of JAX does not have"):
        choose_for(GravityForm(), make(), "pallas")


PACKED = GravityCase(GravityForm(dropout_rate=0.1), "bfloat16", 64, 16, has_mass=True, has_segment_ids=True)


def with_form(case, **changes):
    return case._replace(form=replace(case.form, **changes))


def example_of(case, platform, monkeypatch):
    """The problem of the check on a device, with the kernel interpreted."""
    pretend(monkeypatch, platform)
    monkeypatch.setattr(module, "kernel_target", partial(kernel_target, interpret=True))
    return kernels.EXAMPLES["gravity.pallas"](*case)


@pytest.mark.parametrize(
    "case",
    [
        PACKED,  # the default of w3_25m
        GravityCase(GravityForm(attractive=True, cutoff="decay", eps=0.1), "float32", 32, 20),
        pytest.param(with_form(PACKED, cutoff="soft", rsqrt=True), marks=pytest.mark.slow),
        pytest.param(with_form(PACKED, cutoff="none", attractive=True), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("platform", ["gpu", pytest.param("tpu", marks=pytest.mark.slow)])
def test_the_examples_pass(case, platform, monkeypatch):
    assert max(differences(example_of(case, platform, monkeypatch))) < 0.8


@PLATFORMS
def test_the_example_has_several_tiles(platform, monkeypatch):
    inputs = example_of(PACKED, platform, monkeypatch).inputs(jax.random.key(0))
    length = inputs[0].shape[1]
    assert kernel_target(platform, inputs[1]).padded(length) > kernel_target(platform, inputs[1]).T


def test_the_example_shows_a_kernel_without_the_cutoff(monkeypatch):
    example = example_of(PACKED, "gpu", monkeypatch)
    run = module.gravity_kernel
    monkeypatch.setattr(module, "gravity_kernel", lambda form, *rest: run(replace(form, cutoff="none"), *rest))
    assert max(differences(example)) > 3
