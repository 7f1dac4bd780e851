"""The measurement of memory by compilation."""

import dataclasses

import pytest
from jax.sharding import AbstractMesh

from psann_jax.bench import compile as compiling
from psann_jax.bench import kernel_agreement, memory
from psann_jax.bench.topologies import parse_topology
from psann_jax.cli.bench import memory as cli
from psann_jax.config import Config, ConfigError, PuzzlesConfig, SudokuConfig, TrainConfig

TINY = Config(
    model=SudokuConfig(d_model=16, n_layers=2, n_heads=2, d_mlp=16, iterations=6),
    data=PuzzlesConfig(),
    train=TrainConfig(batch_tokens=81 * 4, precision="fp32"),
)


@pytest.mark.slow
def test_rematerialisation_and_small_batches_need_less():
    result = memory.measure(TINY, [4, 8], ["none", "nested"])
    found = {(case["batch_size"], case["remat"]): case["temp_gib"] for case in result["cases"]}
    assert found[4, "nested"] < found[4, "none"] < found[8, "none"]
    assert found[8, "nested"] < found[8, "none"] / 1.5
    assert result["temp_gib"] == found[4, "none"]
    lines = memory.report(result).splitlines()
    assert len(lines) == 6
    assert lines[2].split()[:2] == ["4", "none"]


def test_a_remat_of_another_base_is_rejected():
    with pytest.raises(ConfigError, match=r"train\.remat: is 'dots'"):
        memory.measure(TINY, [4], ["dots"])
    with pytest.raises(ConfigError, match=r"^train\.batch_tokens: "):
        memory.measure(dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, grad_accum=3)), [4], ["none"])


@pytest.mark.parametrize(("batch_sizes", "remats"), [([4, 6], ["none"]), ([4], ["none", "dots"])])
def test_all_cases_are_checked_before_the_first_is_compiled(batch_sizes, remats, monkeypatch):
    monkeypatch.setattr(memory, "_memory", lambda config: pytest.fail("compiled"))
    accumulated = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, grad_accum=4))
    with pytest.raises(ConfigError, match=r"^train\.(batch_tokens|remat): "):
        memory.measure(accumulated, batch_sizes, remats)


def test_batches_that_the_mesh_cannot_split_are_rejected(monkeypatch):
    mesh = AbstractMesh((2, 1, 1, 1), ("data", "fsdp", "context", "tensor"))
    measurements = (
        (memory, "make_mesh", lambda config: memory.measure(config, [5], ["none"])),
        (kernel_agreement, "make_mesh", kernel_agreement._loss_and_gradients),
        (compiling, "_mesh", lambda config: compiling.compile_programs(config, parse_topology("v5e:1"), ["train"], 1)),
    )
    for module, name, measure in measurements:
        monkeypatch.setattr(module, name, lambda *_: mesh)
        with pytest.raises(ConfigError, match=r"micro-batches of 5 windows, which cannot be divided over 2 devices"):
            measure(dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, batch_tokens=81 * 5)))


def test_steps_without_time_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli._parse(["--config=any.py", "--steps=3"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --steps: has no effect without --time\n"
    steps = (cli._parse(["--config=any.py", *flags]).steps for flags in ([], ["--time"], ["--time", "--steps=3"]))
    assert list(steps) == [0, 30, 3]
