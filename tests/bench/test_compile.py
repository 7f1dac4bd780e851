"""bench compile: the entries of programs, here compiled for the CPU, and one-line errors."""

import importlib.util
import sys

import jax
import pytest

from psann_jax.__main__ import main as program
from psann_jax.bench import compile as compiling
from psann_jax.bench.topologies import Chip, parse_topology
from psann_jax.bench.workers import Worker
from psann_jax.config import ConfigError
from psann_jax.config.io import default_config, parse, to_dict
from psann_jax.train.compilation import compile_steps
from psann_jax.utils.errors import UserError
from tests.support.tiny import tiny_config

TINY = ("--config=configs/quickstart.py", "--config.data.max_length=32", "--config.train.batch_tokens=256")


class CpuTopology:
    """The devices of this process in place of absent ones."""

    name, slices, chip = "cpu:1", 1, Chip("cpu", gb_per_s=100.0, memory_gib=16.0)

    def devices(self):
        return jax.devices()


@pytest.fixture
def make_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "peak_flops", lambda kind, precision: 1e12)
    return lambda **overrides: compiling.Compiler(tiny_config(tmp_path, **overrides), CpuTopology(), 3)


@pytest.fixture
def compiler(make_compiler):
    return make_compiler()


def test_the_training_step_is_the_one_that_a_run_compiles(compiler):
    entries = compiler.run("train")
    task, config = compiler._task, compiler._config
    run = compile_steps(task, config, compiler._mesh)
    assert entries["ok"]
    assert entries["error"] is None
    assert entries["implementations"]["attention"] == ["xla"]
    assert entries["memory_gib"] == pytest.approx(run.memory_mb * 1e6 / 2**30)
    assert entries["memory_gib"] == entries["argument_gib"] + entries["temp_gib"]
    assert entries["kernels"] > 100
    assert entries["collectives"] == {}
    # By hand: 6 FLOPs per weight and token; the program also multiplies masked scores.
    assert entries["tflop_by_hand"] <= entries["tflop"] <= 1.6 * entries["tflop_by_hand"]
    slower = max(entries["hbm_gb"] / 100, max(entries["tflop"], entries["tflop_by_hand"]) / 1)
    assert entries["roofline_ms"] == pytest.approx(1000 * slower)
    assert entries["bound_by"] == "memory"


def test_evaluation_takes_one_micro_batch(make_compiler):
    compiler = make_compiler(train__grad_accum=2)
    train, evaluation = compiler.run("train"), compiler.run("eval")
    assert evaluation["tflop_by_hand"] == pytest.approx(train["tflop_by_hand"] / 6)
    assert evaluation["memory_gib"] < train["memory_gib"]


def test_an_evaluation_costs_the_same_with_frozen_weights(make_compiler):
    whole, frozen = make_compiler(), make_compiler(train__freeze=("matrix", "head"))
    expected = whole.run("train")["tflop_by_hand"]
    assert frozen.run("train")["tflop_by_hand"] < expected
    assert frozen.run("eval")["tflop_by_hand"] == pytest.approx(expected / 3)


def test_prefill_and_decode(compiler):
    prefill, decode = compiler.run("prefill"), compiler.run("decode")
    assert prefill["ok"]
    assert decode["ok"]
    assert decode["loops_counted_once"] >= 1  # the loop over tokens
    assert decode["tflop"] < prefill["tflop"]  # one token against half a window


class LoweringError(Exception):
    """As those of Pallas, whose only common class is Exception."""


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, LoweringError])
def test_what_does_not_compile_is_a_result(kind, compiler, monkeypatch):
    def fail(name):
        raise kind("INTERNAL: no room\nmore lines")

    monkeypatch.setattr(compiler, "_lower", fail)
    entries = compiler.run("train")
    assert (entries["ok"], entries["error"]) == (False, f"{kind.__name__}: INTERNAL: no room")
    assert set(entries) == {"ok", "error", *compiling._MEASURED}
    assert entries["kernels"] is None


def test_a_wrong_setting_keeps_its_message(make_compiler):
    compiler = make_compiler(model__attention="cudnn")
    with pytest.raises(ConfigError, match=r"^model.attention: cudnn runs on NVIDIA GPUs, not on cpu"):
        compiler.run("train")


def test_a_compiler_that_ends_its_process_is_a_result(tmp_path, monkeypatch):
    def ended(*_):
        raise UserError("train for v6e:1: its process ended with code -11; -9 often means out of memory")

    monkeypatch.setattr(Worker, "__init__", ended)
    entries = compiling._compile_alone("train", tiny_config(tmp_path), parse_topology("v6e:1"), 1)
    assert entries["error"].endswith("code -11; -9 often means out of memory")


def test_the_report_has_a_column_for_each_program(compiler):
    programs = {"train": compiler.run("train"), "decode": {"ok": False, "error": "too big"}}
    config = to_dict(compiler._config)
    mesh = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    result = {"programs": programs, "device": "cpu", "topology": "cpu:1", "mesh": mesh, "config": config}
    lines = compiling.report(result).splitlines()
    assert lines[0].startswith("cpu:1 (cpu), mesh data 1 x fsdp 1 x context 1 x tensor 1; waveresnet, fp32; compiled")
    assert lines[1].split() == ["train", "decode"]
    kernels = next(line for line in lines if line.startswith("kernels"))
    assert kernels.split() == ["kernels", f"{programs['train']['kernels']:,}", "-"]
    assert "decode does not compile: too big" in lines
    assert "  collectives: none" in lines


@pytest.mark.parametrize(
    ("name", "platform", "layout", "slices"),
    [
        ("v5e:2x4", "tpu", "2x4", 1),
        ("H100:8", "cuda", "8", 1),
        ("v6e:1", "tpu", "1", 1),
        ("2xv5e:2x4", "tpu", "2x4", 2),
        ("16xh100:8", "cuda", "8", 16),
    ],
)
def test_topologies(name, platform, layout, slices):
    topology = parse_topology(name)
    assert (topology.chip.platform, topology.layout, topology.slices) == (platform, layout, slices)
    assert topology.name == name.lower()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "v5e",
        "a100:8",
        "v5e:8",
        "h100:2x4",
        "v5e:2x",
        "v5e:2x4x",
        "0xv5e:2x4",
        "2xv5e:1",
        "2h100:8",
        "h100:0",
        "v5e:0x4",
    ],
)
def test_other_names_are_no_topologies(name):
    with pytest.raises(ValueError, match=r"is not a topology; examples: v5e:2x4"):
        parse_topology(name)


def test_a_missing_compiler_names_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, extra in (("v5e:2x4", "aot-tpu"), ("h100:1", "aot-gpu")):
        with pytest.raises(UserError, match=rf"pip install 'psann_jax\[{extra}\]'$"):
            parse_topology(name).devices()


def test_sudoku_has_no_decoding(tmp_path):
    config = parse(default_config("sudoku"))
    with pytest.raises(ConfigError, match=r"^--what: prefill and decode need a language model, not base sudoku$"):
        compiling.compile_programs(config, CpuTopology(), ["decode"], 1)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ((), "the following arguments are required: --topology"),
        (("--topology=v7:1",), "--topology: 'v7:1' is not a topology; examples: v5e:2x4, v5p:2x2x2, v6e:1, h100:8"),
        (("--topology=v5e:1", "--what=train,test"), "--what: 'test' is not one of train, eval, prefill, decode"),
        (("--topology=v5e:1", "--rows=0"), "--rows: "),
    ],
)
def test_errors_in_flags_are_one_line(flags, error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["psann-jax", "bench", "compile", *TINY, *flags])
    with pytest.raises(SystemExit) as ended:
        program()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {error}")
