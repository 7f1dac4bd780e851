"""Programs compiled for TPUs and GPUs that are not there: pytest -m aot -n0 tests/aot. Nothing is run.

They need the packages of the extras aot-tpu and aot-gpu; without one, the tests of its devices are skipped.
"""

import importlib.util

import pytest

from psann_jax.bench.compile import compile_programs
from psann_jax.bench.topologies import parse_topology
from psann_jax.config.io import default_config
from psann_jax.models.network import build
from tests.support.tiny import parse_with

pytestmark = pytest.mark.aot

COMPILERS = {"v5e": "libtpu", "v6e": "libtpu", "h100": "jax_cuda13_plugin"}
SINGLE = ("v5e:1", "v6e:1", "h100:1")
MESHES = ("v5e:2x4", "h100:8")


def small(base, **overrides):
    """A config whose programs compile in seconds and have every operation of the base."""
    config = default_config(base)
    config.model.update(d_model=128, n_layers=2, n_heads=2, d_mlp=256)
    config.train.update(steps=10, warmup_steps=1, precision="bf16")
    if base == "sudoku":
        config.model.iterations = 2
        config.train.batch_tokens = 81 * 256
    else:
        config.data.max_length = 512
        config.data.tokenizer.vocab_size = 1024
        config.train.batch_tokens = 64 * 512
    if base == "waveresnet":
        config.model.wave.interleave = True
    return parse_with(config, overrides)


def compiled(config, topology, *programs):
    """Entries of programs, each of which compiles."""
    kind = parse_topology(topology).kind
    if importlib.util.find_spec(COMPILERS[kind]) is None:
        pytest.skip(f"{COMPILERS[kind]} is not installed; pip install 'psann_jax[aot-tpu,aot-gpu]'")
    found = compile_programs(config, parse_topology(topology), programs or ("train",), 8)["programs"]
    for name, entries in found.items():
        assert entries["ok"], f"{name}: {entries['error']}"
    return found


# Operation -> its implementation on TPUs and on GPUs, by base. What is not named here has one implementation.
DOT_PRODUCT = {"attention": ("splash", "triton")}
GRAVITY = {"gravity": ("pallas", "pallas")}
SINE = {"sine": ("polynomial", "triton")}
ROTARY = {"rotate": ("halves", "pairs")}


def used(entries, *expected):
    """Asserts that a program uses the implementations that the tables above name."""
    on_tpu = entries["topology"].startswith("v")
    for table in expected:
        for operation, (on_tpus, on_gpus) in table.items():
            assert entries["implementations"][operation] == [on_tpus if on_tpu else on_gpus]


EXPECTED = {
    "modern": (DOT_PRODUCT, ROTARY),
    "transformer": (DOT_PRODUCT, ROTARY),
    "respsann": (DOT_PRODUCT, ROTARY, SINE),
    "sgrpsann": (DOT_PRODUCT, ROTARY, SINE),
    "waveresnet": (DOT_PRODUCT, ROTARY, SINE),
    "ngt": (GRAVITY,),
    "vanilla": (DOT_PRODUCT,),
    "sudoku": (),
}


@pytest.mark.parametrize("topology", SINGLE)
@pytest.mark.parametrize("base", EXPECTED)
def test_the_training_step_of_every_base_uses_its_kernels(base, topology):
    train = compiled(small(base), topology)["train"]
    assert train["collectives"] == {}
    used(train | {"topology": topology}, *EXPECTED[base])


@pytest.mark.parametrize("topology", MESHES)
@pytest.mark.parametrize("base", EXPECTED)
def test_a_mesh_gathers_parameters_but_no_activations(base, topology):
    """An activation of one device's rows is larger than any parameter here."""
    config = small(base, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    train = compiled(config, topology)["train"]
    used(train | {"topology": topology}, *EXPECTED[base])
    largest = 4 * max(1024 * 128, 2 * 128 * 256)
    if base == "sgrpsann":  # devices share the work of the spectral gate's filter, by features of their own rows
        largest = 2 * (64 // 4) * 512 * 128
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert train["collectives"].get(kind, {"largest_mb": 0})["largest_mb"] <= largest / 1e6, kind


@pytest.mark.parametrize("topology", ["2xv5e:2x4", "2xh100:8"])
def test_only_sums_of_gradients_cross_slices(topology):
    """Weights are gathered and activations summed within a slice."""
    config = small("waveresnet", mesh__data=4, mesh__fsdp=2, mesh__tensor=2)
    train = compiled(config, topology)["train"]
    assert set(train["collectives"]) >= {"all-gather", "all-reduce"}
    assert set(train["between_slices"]) == {"all-reduce"}
    n_params = build(config.model.with_sizes(1024, 512)).n_params
    # In float32, divided over fsdp and tensor; a TPU divides it further within a slice.
    assert 1e6 * train["between_slices"]["all-reduce"]["mb"] <= 1.1 * 4 * n_params / 4 + 4096


GROUPED = {"model__n_kv_heads": 1, "model__sliding_window": 3000}
DIVIDED = [
    ("v5e:2x4", "modern", GROUPED, {"attention": ["splash_gathered"]}),
    ("v6e:2x4", "transformer", {}, {"attention": ["splash_gathered"]}),
    ("v5e:2x4", "ngt", {}, {"gravity": ["ring"]}),
    ("h100:8", "modern", GROUPED, {"attention": ["ring"]}),
    ("h100:8", "ngt", {}, {"gravity": ["ring"]}),
]


@pytest.mark.parametrize(("topology", "base", "options", "expected"), DIVIDED)
def test_windows_divided_over_devices_move_keys_and_values_only(topology, base, options, expected):
    rows, length = 2, 8192
    sizes = {"data__max_length": length, "train__batch_tokens": rows * length}
    train = compiled(small(base, mesh__data=1, mesh__context=8, **sizes, **options), topology)["train"]
    used(train | {"topology": topology}, {name: (chosen[0],) * 2 for name, chosen in expected.items()})
    # The keys of all heads, of whole windows; a ring passes parts of them, or coordinates and values.
    gathered = expected.get("attention") == ["splash_gathered"]
    features = 64 * options.get("model__n_kv_heads", 2)
    largest = {"all-gather": 2 * rows * length * features if gathered else 4 * rows * length}  # document ids
    if not gathered:
        largest["collective-permute"] = 4 * rows * length // 8 * 128
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert train["collectives"].get(kind, {"largest_mb": 0})["largest_mb"] <= largest.get(kind, 1000) / 1e6, kind


def test_parts_of_windows_are_exchanged_within_slices():
    config = small(
        "modern", mesh__data=2, mesh__context=8, data__max_length=4096, train__batch_tokens=8 * 4096, **GROUPED
    )
    train = compiled(config, "2xh100:8")["train"]
    assert train["collectives"]["collective-permute"]["count"] > 0
    assert set(train["between_slices"]) == {"all-reduce"}


@pytest.mark.parametrize(("topology", "n_layers", "chunks"), [("h100:8", 8, 1), ("h100:8", 8, 2), ("v5e:2x4", 2, 2)])
def test_micro_batches_are_summed_over_devices_once(topology, n_layers, chunks):
    """A device computes the loss of a micro-batch in chunks of 4,096 tokens."""
    sizes = {"model__n_layers": n_layers, "train__batch_tokens": 8 * 4 * chunks * 4096}
    config = small("transformer", mesh__data=8, train__grad_accum=4, **sizes)
    sums = compiled(config, topology)["train"]["collectives"]["all-reduce"]
    n_params = build(config.model.with_sizes(1024, 512)).n_params
    assert 4 * n_params <= 1e6 * sums["mb"] <= 4 * n_params + 4096  # and a few scalars


@pytest.mark.parametrize("topology", ["h100:1", "h100:8"])
def test_attention_weights_are_dropped_by_a_kernel_of_each_gpu(topology):
    sizes = {} if topology == "h100:1" else {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    train = compiled(small("vanilla", model__dropout=0.1, **sizes), topology)["train"]
    assert train["implementations"]["attention"] == ["triton"]
    activation = 64 // 4 * 512 * 128 * 2  # of one device's rows, in bytes
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert train["collectives"].get(kind, {"largest_mb": 0})["largest_mb"] < activation / 1e6, kind


@pytest.mark.parametrize("topology", ["v5e:1", "h100:1"])
@pytest.mark.parametrize("base", ["transformer", "ngt"])
def test_memory_is_linear_in_the_window(base, topology):
    """Twice the window with the same tokens takes little more, where scores of all pairs would take twice as much."""
    sizes = [
        compiled(small(base, data__max_length=length, train__batch_tokens=16384), topology)["train"]["temp_gib"]
        for length in (1024, 4096)
    ]
    assert sizes[1] < 1.25 * sizes[0]


@pytest.mark.parametrize("topology", ["v5e:1", "v5e:2x4", "h100:1"])
def test_rematerialisation_saves_memory_in_unrolled_layers(topology):
    """The compiler could merge the recomputation with the forward pass, and keep everything."""
    none, block = (
        compiled(small("transformer", model__n_layers=8, train__remat=remat), topology)["train"]["temp_gib"]
        for remat in ("none", "block")
    )
    assert block < 0.6 * none


@pytest.mark.parametrize("topology", ["v5e:1", "h100:1"])
@pytest.mark.parametrize("base", ["transformer", "sgrpsann", "ngt"])
def test_prefill_and_decoding(base, topology):
    found = compiled(small(base), topology, "prefill", "decode")
    assert found["decode"]["kernels"] < 2000
    assert found["prefill"]["temp_gib"] < 1


@pytest.mark.parametrize("topology", ["v5e:1", "h100:1"])
def test_without_kernels_the_compiler_makes_everything(topology):
    train = compiled(small("respsann", model__kernels="plain"), topology)["train"]
    kernels = {"tpu_custom_call", "__gpu$xla.gpu.triton", "__cudnn$fmhaSoftmax"}
    assert not kernels & set(train["custom_calls"])
