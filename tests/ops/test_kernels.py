"""The choice of an implementation, and the check of a kernel before its first use."""

import json
import types
import warnings

import jax
import jax.numpy as jnp
import pytest

from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.ops import kernel_checks, kernels
from psann_jax.ops.kernel_checks import Example, differences
from psann_jax.ops.kernels import Candidate, choose

FAST, PLAIN = Candidate("fast"), Candidate("plain", is_kernel=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache directory, and no verdicts or examples of other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_verdicts", {})
    monkeypatch.setattr(kernels, "EXAMPLES", {})
    return tmp_path / "psann_jax" / "kernel_checks.json"


def register(kernel, tolerance=1e-6, calls=None):
    @kernels.example("double.fast")
    def make(*variant):
        if calls is not None:
            calls.append(1)
        return Example(kernel, lambda x, n: 2 * x * n, lambda key: (jax.random.normal(key, (3, 4)), 2), tolerance)


def wrong_gradient(x, n):
    return 2 * x * n + jax.lax.stop_gradient(x) - x


def test_the_first_candidate_without_a_reason_is_taken():
    assert choose("op", Candidate("a", "needs a GPU"), Candidate("b"), PLAIN) == "b"
    assert choose("op", Candidate("a", "needs a GPU"), PLAIN) == "plain"
    with kernels.using("plain"):
        assert choose("op", Candidate("a"), PLAIN) == "plain"
        with kernels.using("auto"):
            assert choose("op", Candidate("a"), PLAIN) == "a"
    assert choose("op", Candidate("a"), PLAIN) == "a"


def test_choices_are_recorded():
    with kernels.recorded() as chosen:
        choose("attention", Candidate("a"), PLAIN)
        choose("attention", Candidate("a", "no"), PLAIN)
        choose("sine", PLAIN)
    choose("sine", Candidate("later"))
    assert chosen == {"attention": {"a", "plain"}, "sine": {"plain"}}


def test_the_platform_is_that_of_the_mesh():
    with jax.set_mesh(make_mesh(ONE_DEVICE, all_devices=False)):
        assert jax.jit(lambda: (kernels.platform() == "cpu") * 1)() == 1
        assert kernels.device_kind() == jax.devices()[0].device_kind


@pytest.mark.parametrize(
    ("kind", "expected"), [("cpu", "cpu"), ("TPU v5 lite", "tpu"), ("NVIDIA H100 80GB HBM3", "gpu")]
)
def test_the_platform_follows_from_the_kind_where_jax_does_not_say(kind, expected, monkeypatch):
    mesh = types.SimpleNamespace(abstract_device=types.SimpleNamespace(device_kind=kind))
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    assert kernels.platform() == expected
    mesh.abstract_device.platform = "cuda"
    assert kernels.platform() == "gpu"


def test_a_sound_kernel_is_used_and_compared_once(own_cache):
    calls = []
    register(lambda x, n: x * n + x * n, calls=calls)
    assert choose("double", FAST, PLAIN) == "fast"
    kernels._verdicts.clear()  # another process finds the result in the file
    assert choose("double", FAST, PLAIN) == "fast"
    assert len(calls) == 1
    [(entry, outcome)] = json.loads(own_cache.read_text()).items()
    assert outcome == "passed"
    assert "double.fast" in entry
    assert jax.__version__ in entry


def test_each_variant_is_compared_on_its_own(own_cache):
    @kernels.example("double.fast")
    def make(dtype, factor):
        wrong = 1.1 if dtype == "float16" else 1
        return Example(
            lambda x: wrong * factor * x, lambda x: factor * x, lambda key: (jax.random.normal(key, (5,)),), 1e-6
        )

    assert choose("double", FAST._replace(variant=("float32", 2)), PLAIN) == "fast"
    with pytest.warns(RuntimeWarning, match=r"the kernel double\.fast \(float16, 2\) is not used"):
        assert choose("double", FAST._replace(variant=("float16", 2)), PLAIN) == "plain"
    assert kernels._verdicts == {"double.fast (float32, 2)": True, "double.fast (float16, 2)": False}
    assert len(json.loads(own_cache.read_text())) == 2


@pytest.mark.parametrize("changed", ["source", "library"])
def test_changed_code_is_compared_again(changed, tmp_path, monkeypatch):
    register(lambda x, n: x * n + x * n)
    assert choose("double", FAST, PLAIN) == "fast"
    if changed == "source":
        copied = tmp_path / "ops" / "kernel_checks.py"
        copied.parent.mkdir()
        copied.write_text("")
        monkeypatch.setattr(kernel_checks, "__file__", str(copied))
    else:
        newer = types.SimpleNamespace(metadata={"Name": "libtpu"}, version="99")
        monkeypatch.setattr(kernel_checks, "distributions", lambda: [newer])
    kernel_checks._code.cache_clear()
    kernels._verdicts.clear()
    register(wrong_gradient)
    with pytest.warns(RuntimeWarning, match="not used"):
        assert choose("double", FAST, PLAIN) == "plain"
    monkeypatch.undo()
    kernel_checks._code.cache_clear()


class Store:
    """The key-value store of a run's processes."""

    def __init__(self, found):
        self.found = found

    def key_value_set(self, name, value, *, allow_overwrite):
        self.found[name] = value

    def blocking_key_value_get(self, name, timeout_ms):
        if name not in self.found:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
        return self.found[name]


def test_processes_use_a_kernel_if_process_0_does(own_cache, monkeypatch):
    found = {}
    monkeypatch.setattr(kernel_checks, "process_store", lambda: Store(found))
    register(wrong_gradient)
    with pytest.warns(RuntimeWarning, match="not used"):
        assert choose("double", FAST, PLAIN) == "plain"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    kernels._verdicts.clear()
    register(lambda x, n: 2 * x * n)
    assert choose("double", FAST, PLAIN) == "plain"
    kernels._verdicts.clear()
    found.clear()
    own_cache.unlink()
    assert choose("double", FAST, PLAIN) == "fast", "process 0 does not use it"


def test_a_check_within_a_traced_function_is_no_part_of_it():
    register(lambda x, n: x * n + x * n)
    program = str(jax.make_jaxpr(lambda x: x + (choose("double", FAST, PLAIN) == "fast"))(1.0))
    assert kernels._verdicts == {"double.fast": True}
    assert "normal" not in program
    assert "mul" not in program


def fails(x, n):
    raise NotImplementedError("no such instruction")


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (lambda x, n: 2.001 * x * n, "its value differs from the reference by"),
        (wrong_gradient, "its gradient 0 differs from the reference by"),
        (lambda x, n: 2 * x * n / (x - x), "its value differs from the reference by inf"),
        (fails, "it fails with NotImplementedError: no such instruction"),
    ],
)
def test_a_wrong_kernel_is_refused_with_a_warning(kernel, reason, own_cache):
    register(kernel)
    with pytest.warns(RuntimeWarning, match=r"the kernel double\.fast is not used") as caught:
        assert choose("double", FAST, PLAIN) == "plain"
    assert reason in str(caught[0].message)
    assert jax.devices()[0].device_kind in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("double", FAST, PLAIN) == "plain"  # said once in a process
    kernels._verdicts.clear()
    with pytest.warns(RuntimeWarning, match="not used"):  # from the file, or by another comparison
        assert choose("double", FAST, PLAIN) == "plain"


def test_a_kernel_that_did_not_run_is_tried_again_by_the_next_process(own_cache):
    full = [True]

    def kernel(x, n):
        if full:
            raise MemoryError("the device is full")
        return 2 * x * n

    register(kernel)
    with pytest.warns(RuntimeWarning, match="the next start checks again"):
        assert choose("double", FAST, PLAIN) == "plain"
    assert not own_cache.exists()
    full.clear()
    kernels._verdicts.clear()
    assert choose("double", FAST, PLAIN) == "fast"


@pytest.mark.parametrize("content", ["", "[]", "{broken"])
def test_a_damaged_file_of_results_is_replaced(content, own_cache):
    own_cache.parent.mkdir()
    own_cache.write_text(content)
    register(lambda x, n: 2 * x * n)
    assert choose("double", FAST, PLAIN) == "fast"
    assert list(json.loads(own_cache.read_text()).values()) == ["passed"]


def test_without_a_writable_cache_the_check_still_runs(own_cache):
    own_cache.parent.write_text("a file where the directory should be")
    register(lambda x, n: 2 * x * n)
    assert choose("double", FAST, PLAIN) == "fast"


def test_differences_are_fractions_of_the_largest_value():
    def inputs(key):
        return jnp.array([1.0, -4.0]), None

    example = Example(lambda x, _: 3 * x + jnp.array([0.12, 0]), lambda x, _: 3 * x, inputs, 1e-6)
    found = differences(example)
    assert found["value"] == pytest.approx(0.01)
    assert found["gradient 0"] == 0
