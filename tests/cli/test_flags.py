"""Config files and overrides on a command line."""

from argparse import ArgumentTypeError

import pytest

from psann_jax.cli.flags import (
    ConfigParser,
    default_workdir,
    names,
    positive_int,
    positive_number,
    read_config,
    split_overrides,
    writable_file,
)

CONFIG = """
from psann_jax.config.io import default_config

def get_config(base="transformer"):
    return default_config(base)
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "experiment.py").write_text(CONFIG)
    return tmp_path / "experiment.py"


def parse(*arguments, **options):
    return ConfigParser("train", "Trains.", **options).parse_strictly(list(map(str, arguments)))


def test_overrides_reach_the_config(path):
    config = read_config(parse(f"--config={path}", "--config.train.lr", "2e-3", "--config.model.n_layers=3"))
    assert (config.train.lr, config.model.n_layers) == (2e-3, 3)
    config = read_config(parse("--noconfig.data.pack", "--config", f"{path}:respsann"))
    assert (config.model.base, config.data.pack) == ("respsann", False)


def test_overrides_are_split_from_other_arguments():
    arguments = ["--a", "--config.x.y=1", "--config=f.py", "--config.z", "-2", "--config.flag", "--noconfig.off", "-h"]
    assert split_overrides(arguments, "config") == (
        ["--a", "--config=f.py", "-h"],
        ["x.y=1", "z=-2", "flag", "nooff"],
    )
    assert split_overrides(["--config.x=1", "--against.x=2"], "against") == (["--config.x=1"], ["x=2"])


def test_defaults_apply_only_without_a_config(path):
    defaults = {"default_file": "a.py", "default_overrides": ("train.precision=fp32",)}
    flags = parse("--config.train.lr=1", **defaults)
    assert (flags.config_file, flags.overrides) == ("a.py", ["train.precision=fp32", "train.lr=1"])
    flags = parse(f"--config={path}", "--config.train.lr=1", **defaults)
    assert (flags.config_file, flags.overrides) == (str(path), ["train.lr=1"])


def test_flags_are_not_abbreviated(path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(f"--conf={path}")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --conf: unknown argument, did you mean --config?\n"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("configs/quickstart.py", "runs/quickstart"),
        ("configs/quickstart.py:argument", "runs/quickstart"),
        ("/home/me/configs/old/configs/sudoku/quickstart.py", "runs/sudoku/quickstart"),
        ("/tmp/mine.py", "runs/mine"),
        ("/tmp/configs.py", "runs/configs"),
    ],
)
def test_configs_of_one_name_have_workdirs_of_their_own(path, expected):
    assert str(default_workdir(path)) == expected


def test_values_of_flags(tmp_path):
    assert positive_int("7") == 7
    assert names("a, b,") == ["a", "b"]
    assert writable_file(str(tmp_path / "x.json")) == tmp_path / "x.json"
    for read, wrong in (
        (positive_int, "0"),
        (positive_int, "x"),
        (positive_number, "inf"),
        (names, ","),
        (writable_file, str(tmp_path)),
        (writable_file, "x" * 304),
    ):
        with pytest.raises(ArgumentTypeError):
            read(wrong)
