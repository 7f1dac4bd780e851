"""The commands: found by name, listed by --help, and one-line errors with exit code 2 without loading JAX."""

import ast
import importlib
import subprocess
import sys
import tomllib

import pytest

from psann_jax.__main__ import main as program
from psann_jax.cli import commands
from tests.support.processes import TESTS, environment

NAMES = [name for group in commands.COMMANDS.values() for name in group]


def run(monkeypatch, *arguments):
    """Runs the program in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["psann-jax", *arguments])
    try:
        program()
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help(name, monkeypatch, capsys):
    assert run(monkeypatch, *name.split(), "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: psann-jax {name} ")
    assert "--help" in shown


def test_every_file_is_a_command():
    folder = TESTS.parent / "psann_jax" / "cli"
    shared = {"__init__", "flags", "commands", "program", "bench/__init__", "bench/result"}
    files = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py")}
    assert files - shared == {name.replace(" ", "/") for name in NAMES}


def test_help_lists_all_commands(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {name} " in overview for name in NAMES)
    assert run(monkeypatch, "bench", "--help") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line.split()[:2] for line in lines] == [name.split() for name in NAMES if name.startswith("bench ")]


@pytest.mark.parametrize("arguments", [[], ["bench"]])
def test_without_a_command_the_list_is_shown(arguments, monkeypatch, capsys):
    assert run(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "bench throughput" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian: unknown command, did you mean train?"),
        (["throughput"], "throughput: unknown command, did you mean bench throughput?"),
        (["bench", "thruput"], "bench thruput: unknown command, did you mean throughput?"),
        (["bench", "xyz"], "bench xyz: unknown command; psann-jax bench --help lists the commands"),
        (["--config=x.py"], "--config=x.py: comes before the command; psann-jax --help lists the commands"),
        (["bench", "sweep"], "bench sweep: is now psann-jax sweep"),
        (["validate"], "validate: is now psann-jax selftest"),
        (["train", "--print_sharding"], "--print_sharding: is now psann-jax bench layout --config=FILE"),
        (
            ["evaluate", "--workdir=x", "--mesh=8"],
            "--mesh: is '8', must be three sizes such as 1,1,1 or four such as 1,1,1,8",
        ),
        (["evaluate", "--workdir=x", "--averaged"], "--averaged: is now --ema"),
        (["train"], "--config: name a config file, for example --config=configs/quickstart.py"),
        (["train", "configs/quickstart.py"], "configs/quickstart.py: unknown argument; flags begin with --"),
        (["train", "--config=nowhere.py"], "nowhere.py: there is no such config file"),
        (["evaluate", "--workdri=x"], "the following arguments are required: --workdir"),
        (["evaluate", "--workdir=x", "--presicion=fp32"], "--presicion: unknown argument, did you mean --precision?"),
    ],
)
def test_an_error_is_one_line_and_code_2(arguments, message, monkeypatch, capsys):
    assert run(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: {message}\n"


def test_the_console_script_is_this_program():
    """As module and as script; no JAX before the command line is known to be good."""
    scripts = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["psann-jax"].partition(":")
    assert getattr(importlib.import_module(module), function) is program
    command = [sys.executable, "-X", "importtime", "-m", "psann_jax", "bench", "layout", "--config=nowhere.py"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: nowhere.py: there is no such config file"
    assert " jax" not in {line.rpartition("|")[2].rstrip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize("name", NAMES)
def test_commands_import_jax_late(name):
    """No module of a command imports a slow package at its top."""
    path = TESTS.parent / "psann_jax" / "cli" / f"{name.replace(' ', '/')}.py"
    slow = ("jax", "flax", "torch", "psann_jax.models", "psann_jax.train", "psann_jax.tasks", "psann_jax.bench")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert not node.module.startswith(slow), node.module
