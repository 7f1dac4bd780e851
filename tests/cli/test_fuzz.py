"""Damaged files of every format and odd values of every option: commands end with code 0, or one line and code 2."""

import functools
import gzip
import importlib
import io
import json
import lzma
import random
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psann_jax.cli import flags as cli_flags
from psann_jax.cli.commands import COMMANDS
from psann_jax.cli.program import exit_code
from psann_jax.config.io import default_config, flatten, to_dict
from psann_jax.convert.read import read_weights
from psann_jax.convert.safetensors_file import write_safetensors
from psann_jax.runs import restore
from psann_jax.runs.evaluate import Evaluation
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.workdir import write_config
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import is_installed
from psann_jax.utils.files import storage_errors, write_json
from tests.support.damage import ODD, damaged
from tests.support.processes import environment
from tests.support.saved import save_run
from tests.support.tiny import sentences, tiny_config

NAMES = [name for group in COMMANDS.values() for name in group]
CONFIG = """
from psann_jax.config.io import default_config

def get_config(base="respsann"):
    config = default_config(base)
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    if base == "sudoku":
        config.train.batch_tokens = 81 * 4
        return config
    config.data.update(sources=({text!r},), valid_fraction=0.1, max_length=32, cache_dir={cache!r})
    config.data.tokenizer.kind = "bytes"
    config.train.update(steps=2, warmup_steps=1, batch_tokens=256, precision="fp32")
    return config
"""


class World:
    """A directory with one good file of each format, and a run."""

    def __init__(self, folder):
        self.folder, self.files = folder, folder / "files"
        self.files.mkdir()
        text = "\n".join(sentences(60)) + "\n"
        records = "".join(json.dumps({"text": line, "n": i}) + "\n" for i, line in enumerate(sentences(60)))
        (folder / "text.txt").write_text("\n".join(sentences(400)))
        (self.files / "a.txt").write_text(text)
        (self.files / "a.jsonl").write_text(records)
        (self.files / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
        (self.files / "a.jsonl.xz").write_bytes(lzma.compress(records.encode()))
        with pa.output_stream(str(self.files / "a.txt.zst"), compression="zstd") as stream:
            stream.write(text.encode())
        pq.write_table(pa.table({"text": sentences(60)}), self.files / "a.parquet")
        grid = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
        answer = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
        (self.files / "a.csv").write_text("question,answer,rating\n" + f"{grid},{answer},3\n" * 40)
        (self.files / "prompts.txt").write_text("the sun\na wave\n\n")
        (self.files / "config.py").write_text(CONFIG.format(text=str(folder / "text.txt"), cache=str(folder / "cache")))
        self.config = self.files / "config.py"
        self.run = folder / "run"
        config = tiny_config(folder, model__n_layers=1)
        save_run(self.run, config, {3: 2.0, 6: 1.0})
        write_json(self.run / "config.json", to_dict(config))
        record = {"kind": "train", "step": 1, "loss": 2.0, "lr": 0.1}
        (self.run / METRICS).write_text("".join(json.dumps({**record, "step": i}) + "\n" for i in range(1, 7)))
        write_json(self.run / "summary.json", {"steps": 6, "val_loss": 1.0})
        write_safetensors(self.files / "a.safetensors", read_weights(self.run))
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        special = ["<pad>", "<bos>", "<eos>", "<unk>"]
        tokenizer.train_from_iterator(sentences(60), trainers.BpeTrainer(vocab_size=300, special_tokens=special))
        tokenizer.save(str(self.files / "tokenizer.json"))

    def damaged(self, name, rng):
        """Writes a damaged copy of a file and returns its path."""
        folder = self.folder / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / name).write_bytes(damaged((self.files / name).read_bytes(), rng))
        return folder / name

    def damaged_run(self, rng, *names):
        """Copies the run and damages one of its files; without names any file."""
        folder = self.folder / "damaged_run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.run, folder)
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and (not names or p.name in names)]
        path = rng.choice(files)
        if rng.random() < 0.1:
            path.unlink()
        else:
            path.write_bytes(damaged(path.read_bytes(), rng))
        return folder


@pytest.fixture(scope="module")
def loaded_once():
    """Makes commands share the runs that they load."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_run", "load_text_run"):
            patch.setattr(f"psann_jax.runs.restore.{name}", functools.cache(getattr(restore, name)))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def quick(world, monkeypatch, tmp_path):
    """Replaces the work of commands, after they have read their files, by nothing."""
    monkeypatch.chdir(tmp_path)

    def train(config, make_task, workdir, **options):
        with storage_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        make_task()
        read_metrics(workdir / METRICS)
        write_config(workdir, config)
        return {"steps": 0}

    monkeypatch.setattr("psann_jax.runs.training.train", train)
    monkeypatch.setattr("psann_jax.runs.training.plot_loss_curve", lambda *args, **options: None)
    monkeypatch.setattr("psann_jax.train.compilation.enable_compilation_cache", lambda path: None)
    monkeypatch.setattr("faulthandler.enable", lambda: None)
    for name in ("devices", "generate", "memory", "served", "start", "throughput"):
        monkeypatch.setattr(f"psann_jax.bench.{name}.measure", lambda *args, **options: {})
        monkeypatch.setattr(f"psann_jax.bench.{name}.report", lambda result: "")
    monkeypatch.setattr("psann_jax.cli.lm_eval.require_extra", _no_lm_eval)
    if is_installed("uvicorn"):
        served, server = SimpleNamespace(describe=lambda: ""), SimpleNamespace(url="", answer=lambda: None)
        monkeypatch.setattr("psann_jax.serve.served.Served", lambda *args: served)
        monkeypatch.setattr("psann_jax.serve.server.Server", lambda *args: server)
    monkeypatch.setattr("psann_jax.bench.layout.describe_layout", lambda config: "")
    monkeypatch.setattr("psann_jax.bench.layout.simulate_devices", lambda mesh: None)
    monkeypatch.setattr("psann_jax.selftest.child.in_child", lambda function: {"backend": "cpu", "n_devices": 1})
    monkeypatch.setattr("psann_jax.selftest.check.run_checks", lambda *args: [])
    monkeypatch.setattr("psann_jax.selftest.report.readme", lambda summary: "")
    monkeypatch.setattr("psann_jax.selftest.report.write_report", lambda out, summary: None)
    monkeypatch.setattr("psann_jax.runs.evaluate.evaluate", lambda *args, **options: Evaluation({}, {}))
    monkeypatch.setattr("psann_jax.runs.coordinates.write_coordinates", lambda *args, **options: None)
    monkeypatch.setattr("psann_jax.plots.sine.draw_sine", lambda *args: None)
    monkeypatch.setattr("psann_jax.sample.text.TextSampler.complete", lambda *args, **options: iter(()))
    monkeypatch.setattr("psann_jax.cli.generate._stream", lambda *args: None)
    monkeypatch.setattr("psann_jax.runs.samples.sample_texts", lambda *args: [])


def _no_lm_eval(*args):
    raise UserError("lm_eval: takes long to load its tasks")


class Faults(list):
    """Command lines that did not end as they should."""

    def try_command(self, argv, capsys, codes=(0, 2)):
        """Runs a command in this process and checks its code and its error."""
        argv = [str(argument) for argument in argv]
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # as the program does
        code = exit_code(argv)
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        good = code in codes and "Traceback" not in error and len(lines) == (1 if code == 2 else 0)
        if not good or (lines and not error.endswith(f"{lines[0]}\n")):
            self.append(f"{code}: {' '.join(argv)[:300]!a}\n    {error[-700:]}")

    def check(self):
        """Fails with all of them."""
        assert not self, "\n".join([f"{len(self)} faults", *self])


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    found = Faults()
    yield found
    found.check()


budgets = pytest.mark.parametrize("factor", [1, pytest.param(20, marks=pytest.mark.slow)])


# --- damaged files --------------------------------------------------------------------------------------


@budgets
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.xz", "a.txt.zst", "a.parquet"])
def test_damaged_text(name, factor, world, quick, faults, capsys, tmp_path):
    rng = random.Random(factor)
    for i in range(12 * factor):
        path = world.damaged(name, rng)
        faults.try_command(["make_eval", f"--source={path}", f"--out={tmp_path}/{i}.jsonl"], capsys)
        if i % 4 == 0:
            source = f"--config.data.sources={path}"
            faults.try_command(["train", f"--config={world.config}", f"--workdir={tmp_path}/{i}", source], capsys)


@budgets
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("a.csv", "train --config={config}:sudoku --workdir={out} --config.data.files={path}"),
        ("tokenizer.json", "train --config={config} --workdir={out} --config.data.tokenizer.kind=auto"
         " --config.data.tokenizer.path={path}"),
        ("config.py", "train --config={path} --print_config"),
        ("prompts.txt", "generate --workdir={run} --prompts_file={path} --json"),
        ("a.safetensors", "convert --from={path} --to={out}.safetensors"),
        ("tokenizer.json", "convert --from={safetensors} --to={out} --tokenizer={path}"),
    ],
)  # fmt: skip
def test_damaged_files(name, command, factor, world, loaded_once, quick, faults, capsys, tmp_path):
    rng = random.Random(factor)
    for i in range(12 * factor):
        names = {"config": world.config, "run": world.run, "out": tmp_path / str(i), "path": world.damaged(name, rng)}
        safetensors = world.files / "a.safetensors"
        faults.try_command([w.format(safetensors=safetensors, **names) for w in command.split()], capsys)


@budgets
def test_damaged_checkpoints(factor, world, quick, faults, capsys, tmp_path):
    rng = random.Random(factor)
    for i in range(8 * factor):
        run = world.damaged_run(rng)
        which = rng.choice(["last", "best", "3"])
        faults.try_command(
            ["convert", f"--from={run}", f"--to={tmp_path}/{i}.safetensors", f"--checkpoint={which}"], capsys
        )


@budgets
def test_damaged_records_of_a_run(factor, world, quick, faults, capsys):
    rng = random.Random(factor)
    for _ in range(6 * factor):
        run = world.damaged_run(rng, "config.json", METRICS, "summary.json")
        faults.try_command(["train", f"--config={world.config}", f"--workdir={run}"], capsys)
        faults.try_command(["evaluate", f"--workdir={run}", "--json"], capsys)


# --- odd values -----------------------------------------------------------------------------------------


def options_of(name, monkeypatch):
    """The options of a command, from its parser."""
    found = []

    def parse(parser, argv):
        found.extend(option for action in parser._actions for option in action.option_strings if action.nargs != 0)
        raise SystemExit(0)

    module = importlib.import_module(f"psann_jax.cli.{name.replace(' ', '.')}")
    with monkeypatch.context() as patch:
        patch.setattr(cli_flags.argparse.ArgumentParser, "parse_known_args", parse)
        with pytest.raises(SystemExit):
            module._parse(["--config=x.py"])
    return [option for option in found if not option.endswith(".KEY")]


def complete(name, world, out):
    """A command line that works."""
    needed = {
        "make_eval": [f"--source={world.files}/a.txt", f"--out={out}.jsonl"],
        "convert": [f"--from={world.files}/a.safetensors", f"--to={out}.safetensors"],
        "generate": [f"--workdir={world.run}", "--prompt=a"],
        "lm_eval": [f"--workdir={world.run}", "--tasks=nothing"],
        "selftest": [f"--out={out}"],
        "sweep": [f"--config={world.config}", f"--workdir={out}", "--dry_run"],
        "train": [f"--config={world.config}", f"--workdir={out}"],
    }
    default = [f"--config={world.config}"] if name.startswith("bench") else [f"--workdir={world.run}"]
    return [*name.split(), *needed.get(name, default)]


@budgets
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "bench kernels" else name for name in NAMES]
)
def test_odd_values_of_options(name, factor, world, loaded_once, quick, faults, capsys, monkeypatch, tmp_path):
    rng = random.Random(factor)
    faults.try_command(complete(name, world, tmp_path / "good"), capsys)
    for i, option in enumerate(options_of(name, monkeypatch)):
        for value in rng.sample(ODD, min(4 * factor, len(ODD))):
            faults.try_command([*complete(name, world, tmp_path / str(i)), f"{option}={value}"], capsys)


@budgets
@pytest.mark.parametrize("base", ["respsann", "ngt", "sudoku"])
def test_odd_values_of_settings(base, factor, world, quick, faults, capsys):
    rng = random.Random(factor)
    for key in dict(flatten(default_config(base).to_dict())):
        for value in rng.sample(ODD, min(2 * factor, len(ODD))):
            argv = ["train", f"--config={world.config}:{base}", f"--config.{key}={value}", "--print_config"]
            faults.try_command(argv, capsys)


def test_odd_command_lines_in_processes_of_their_own(world, tmp_path):
    """Also what happens before and after the commands."""
    for argv in (
        ["train", f"--config={world.config}", "--config.train.lr=nan"],
        ["evaluate", f"--workdir={world.files}"],
        ["\udcff"],
    ):
        command = [sys.executable, "-m", "psann_jax", *argv]
        done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, check=False, timeout=120)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(b"error: ")
        assert done.stderr.count(b"\n") == 1
