"""Every command line in the documents and config files can be parsed: its flags are known, its settings valid."""

import importlib
import re
import shlex

import pytest

from psann_jax.cli.commands import COMMANDS
from psann_jax.cli.flags import read_config, read_experiment
from psann_jax.config.files import load_config_file
from psann_jax.experiments.sweeps import check_overrides
from tests.support.doc_commands import ROOT, lines

NAMES = {name for group in COMMANDS.values() for name in group}
PAGES = [*(ROOT / name for name in ("README.md", "BENCHMARKS.md", "CONTRIBUTING.md")), *(ROOT / "docs").rglob("*.md")]
SCRIPTS = [*(ROOT / "configs").rglob("*.py"), *(ROOT / "launch").glob("*.sh")]


def written():
    """All command lines, as arguments after psann-jax, with the file that contains them."""
    for page in sorted(PAGES):
        variables = {}
        for line in lines(page):
            words = shlex.split(line)
            if all(re.match(r"\w+=", word) for word in words):
                variables.update(word.split("=", 1) for word in words)
            yield page, re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line)  # noqa: B023
    for path in sorted(SCRIPTS):
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ {2,4}((?:psann-jax|python -m psann_jax).*)$", text, re.MULTILINE):
            yield path, line


def arguments(line):
    """The arguments of psann-jax in a command line; None if it runs another program."""
    words = [word for word in shlex.split(line, comments=True) if word not in ("&&", "|")]
    for i, word in enumerate(words):
        if word == "psann-jax" or words[i : i + 2] == ["-m", "psann_jax"]:
            return words[i + (1 if word == "psann-jax" else 2) :]
        if words[i : i + 2] == ["-m", "psann_jax.main"]:
            return ["train", *words[i + 2 :]]
    return None


LINES = sorted({(path.relative_to(ROOT).as_posix(), line) for path, line in written() if arguments(line)})


def check(given):
    """Parses a command line and what it names, without the work; raises or exits if something is wrong."""
    size = 2 if given[0] == "bench" else 1
    name = " ".join(given[:size])
    assert name in NAMES
    flags = importlib.import_module(f"psann_jax.cli.{name.replace(' ', '.')}")._parse(given[size:])
    if name == "sweep":
        check_overrides(load_config_file(flags.config_file), flags.overrides)
    elif hasattr(flags, "config_file"):
        read_config(flags)
    if getattr(flags, "against", None):
        read_experiment(flags.against, flags.against_overrides, "against")


@pytest.mark.parametrize(("path", "line"), LINES)
def test_a_documented_command_parses(path, line, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    given = [word for word in arguments(line) if not word.startswith((">", "2>"))]
    placeholders = ("--help", "...", "COMMAND", "FILE", "NAME")
    if any(word in placeholders or word.endswith(("=FILE", "=NAME")) for word in given):
        pytest.skip("a form of commands, not a command")
    if given[0] == "sweep" and "--config" not in line:  # named in prose, with flags only
        given.append("--config=configs/sweeps/bases_cpu.py")
    monkeypatch.setattr("os.access", lambda path, mode: True)
    check(given)


def test_commands_were_found():
    assert len({path for path, _ in LINES}) > 40
    assert {arguments(line)[0] for _, line in LINES} >= {name.split()[0] for name in NAMES} - {"make_eval"}


@pytest.mark.parametrize(
    "line",
    [
        "train --config=configs/quickstart.py --config.train.lrr=1",
        "train --config=configs/nowhere.py",
        "generate --workdir=run --promt=a",
        "sweep --config=configs/sweeps/bases_cpu.py --config.train.lrr=1",
        "sweep --config=configs/sweeps/bases_cpu.py --config.seed=1",
    ],
)
def test_what_is_wrong_is_found(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((SystemExit, Exception)):
        check(line.split())
