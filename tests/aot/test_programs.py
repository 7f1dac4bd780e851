"""Programs compiled for TPUs and GPUs that are not there: pytest -m aot -n0 tests/aot. Nothing is run.

They need the packages of the extras aot-tpu and aot-gpu; without one, the tests of its devices are skipped.
"""

import importlib.util

import pytest

from psann_jax.bench.compile import compile_programs
from psann_jax.bench.topologies import parse_topology
from psann_jax.config.io import default_config, parse

pytestmark = pytest.mark.aot

COMPILERS = {"v5e": "libtpu", "v6e": "libtpu", "h100": "jax_cuda13_plugin"}
BASES = ("transformer", "respsann", "sgrpsann", "waveresnet", "ngt", "vanilla")
SINGLE = ("v5e:1", "v6e:1", "h100:1")
MESHES = ("v5e:2x4", "h100:8")


def small(base, **overrides):
    """A config whose programs compile in seconds and have every operation of the base."""
    config = default_config(base)
    config.model.update(d_model=128, n_layers=2, n_heads=2, d_mlp=256)
    config.train.update(steps=10, warmup_steps=1, precision="bf16")
    if base == "sudoku":
        config.model.iterations = 2
        config.train.batch_tokens = 81 * 16
    else:
        config.data.max_length = 512
        config.data.tokenizer.vocab_size = 1024
        config.train.batch_tokens = 8 * 512
    if base == "waveresnet":
        config.model.wave.interleave = True
    with config.unlocked():
        for name, value in overrides.items():
            *parents, leaf = name.split("__")
            node = config
            for parent in parents:
                node = node[parent]
            node[leaf] = value
    return parse(config)


def compiled(config, topology, *programs):
    """Entries of programs, each of which compiles."""
    kind = topology.partition(":")[0]
    if importlib.util.find_spec(COMPILERS[kind]) is None:
        pytest.skip(f"{COMPILERS[kind]} is not installed; pip install 'psann_jax[aot-tpu,aot-gpu]'")
    found = compile_programs(config, parse_topology(topology), programs or ("train",), 8)["programs"]
    for name, entries in found.items():
        assert entries["ok"], f"{name}: {entries['error']}"
    return found


def attention_of(base, topology):
    if base == "sudoku":
        return None
    on_tpu = topology.startswith("v")
    return {"attention": ["splash" if on_tpu else "cudnn_packed"]}


@pytest.mark.parametrize("topology", SINGLE)
@pytest.mark.parametrize("base", [*BASES, "sudoku"])
def test_the_training_step_of_every_base_uses_its_kernels(base, topology):
    train = compiled(small(base), topology)["train"]
    assert train["collectives"] == {}
    print(base, topology, train["implementations"], train["kernels"], train["custom_calls"])


@pytest.mark.parametrize("topology", MESHES)
@pytest.mark.parametrize("base", [*BASES, "sudoku"])
def test_a_mesh_gathers_parameters_but_no_activations(base, topology):
    config = small(base, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    train = compiled(config, topology)["train"]
    print(base, topology, train["implementations"], train["collectives"])
