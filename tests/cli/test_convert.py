"""The convert command: all conversions between formats, and one line with exit code 2 for an error."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from psann_jax.cli import convert
from psann_jax.cli.flags import fail
from psann_jax.config.io import to_dict
from psann_jax.convert.run import read_run, write_run
from psann_jax.convert.safetensors_file import read_safetensors, write_safetensors
from psann_jax.convert.weights import Weights, flat_params
from psann_jax.models.network import build, make_network
from psann_jax.runs.restore import load_text_run
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.loop import train
from psann_jax.train.workdir import read_config, write_config
from psann_jax.utils.errors import UserError
from tests.support.processes import environment
from tests.support.saved import TOKENIZER, save_run
from tests.support.tiny import tiny_config
from tests.support.weights import psannlm_model, psannlm_version_012, weights_of


def run(*flags):
    """Runs the command in this process."""
    try:
        convert.main(list(map(str, flags)))
    except UserError as error:
        fail(error)


def same(a, b):
    a, b = flat_params(a.params), flat_params(b.params)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, weights_of("waveresnet_interleave"))
    return path


def test_a_file_becomes_a_run_and_a_file_again(file, tmp_path, capsys):
    run("--from", file, "--to", tmp_path / "run")
    assert "run: waveresnet, " in capsys.readouterr().out
    loaded = load_text_run(tmp_path / "run")
    assert loaded.step == 0
    assert loaded.tokenizer.to_bytes() == TOKENIZER.to_bytes()
    run(f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'again.safetensors'}", "--checkpoint=last")
    first, again = read_safetensors(file), read_safetensors(tmp_path / "again.safetensors")
    assert same(first, again)
    assert first.config == again.config


def test_a_directory_with_a_model_is_a_source(file, tmp_path):
    run("--from", tmp_path, "--to", tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == file.read_bytes()


def test_a_run_becomes_a_folder_of_transformers_and_a_run_again(tmp_path, capsys):
    config = tiny_config(tmp_path)
    save_run(tmp_path / "run", config, {4: 1.0, 6: 2.0})
    write_config(tmp_path / "run", config)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "eval", "step": 4, "loss": 1.0}\n')
    run(f"--from={tmp_path / 'run'}", f"--to=hf:{tmp_path / 'folder'}", "--checkpoint=best")
    assert "folder: waveresnet, " in capsys.readouterr().out
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "1.0000 nats per token" in card
    assert "| converted from | `run`, update 4 |" in card
    assert "| training data | text.txt |" in card
    assert str(tmp_path) not in card
    run(f"--from=hf:{tmp_path / 'folder'}", f"--to={tmp_path / 'again'}")
    assert same(read_run(tmp_path / "run", "best"), read_run(tmp_path / "again"))
    with pytest.raises(SystemExit):
        run(f"--from={tmp_path / 'run'}", f"--to=hf:{tmp_path / 'folder'}")
    assert "folder: is not an empty directory; choose a new one" in capsys.readouterr().err


def test_the_average_of_the_weights_with_its_loss(tmp_path):
    config = tiny_config(tmp_path, train__ema_decay=0.5)
    network = make_network(config, TOKENIZER.vocab_size)
    average = jax.tree.map(lambda a: np.full(a.shape, 0.25, a.dtype), network.abstract)
    live = jax.tree.map(np.zeros_like, average)
    metadata = {"config": to_dict(config), "data": "text"}
    with Checkpoints(tmp_path / "run" / "checkpoints", config.checkpoint) as checkpoints:
        state = {"params": live, "ema_params": average, "step": np.array(4, np.int32)}
        checkpoints.save(4, state, metadata=metadata, tokenizer=TOKENIZER.to_bytes(), final=True)
    write_config(tmp_path / "run", config)
    row = '{"kind": "eval", "step": 4, "loss": 1.0, "ema_loss": 0.5}\n'
    (tmp_path / "run" / "metrics.jsonl").write_text(row)
    for flags, value, loss in (([], 0.0, "1.0000"), (["--ema"], 0.25, "0.5000")):
        folder = tmp_path / loss
        run(f"--from={tmp_path / 'run'}", f"--to=hf:{folder}", *flags)
        arrays = safetensors.numpy.load_file(folder / "model.safetensors")
        assert all((a == value).all() for a in arrays.values())
        assert f"| validation loss | {loss} nats per token" in (folder / "README.md").read_text()


def test_a_run_without_an_average_of_the_weights(tmp_path, capsys):
    config = tiny_config(tmp_path)
    save_run(tmp_path / "run", config, {4: 1.0})
    write_config(tmp_path / "run", config)
    with pytest.raises(SystemExit):
        run(f"--from={tmp_path / 'run'}", f"--to=hf:{tmp_path / 'folder'}", "--ema")
    assert "has no EMA weights, because train.ema_decay was 0" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def test_an_imported_run_has_no_average_of_the_weights(file, tmp_path):
    weights = read_safetensors(file)
    config = dataclasses.replace(weights.config, train=dataclasses.replace(weights.config.train, ema_decay=0.5))
    write_run(tmp_path / "run", dataclasses.replace(weights, config=config), "here")
    assert read_config(tmp_path / "run")["train"]["ema_decay"] == 0
    with pytest.raises(UserError, match=r"step_0: has no EMA weights, because train\.ema_decay was 0"):
        load_text_run(tmp_path / "run", ema_params=True)


def test_an_imported_run_cannot_be_trained(tmp_path):
    """It has no text and no optimizer state, so training there would start from other weights."""
    config = tiny_config(tmp_path, model__vocab_size=TOKENIZER.vocab_size)
    weights = Weights(config, build(config.model).init(jax.random.key(0)), TOKENIZER)
    write_run(tmp_path / "run", weights, "here")
    with pytest.raises(UserError, match=r"was trained on another content of .* or with another tokenizer"):
        train(config, lambda: LanguageModel.load(config, progress=False), tmp_path / "run")


ERRORS = {
    "no source": (["--to=x.safetensors"], "--from"),
    "no such thing": (["--from=/nowhere", "--to=x.safetensors"], "/nowhere: must be a .safetensors file"),
    "unknown flag": (
        ["--from=a", "--to=b", "--tokeniser=c"],
        "--tokeniser: unknown argument, did you mean --tokenizer?",
    ),
    "bad number": (["--from=a.pt", "--to=b", "--n_heads=x"], "--n_heads: invalid int value: 'x'"),
    "not a workdir": (["--from=FILE", "--to=y.safetensors", "--checkpoint=best"], "checkpoint: has no effect for"),
    "not psannlm": (["--from=FILE", "--to=y.safetensors", "--n_heads=2"], "n_heads: has no effect for"),
    "another tokenizer": (["--from=FILE", "--to=y.safetensors", "--tokenizer=T"], "has its own; omit this one"),
    "exists": (["--from=FILE", "--to=FILE"], "exists; name another file, or give --overwrite"),
    "nothing to overwrite": (["--from=FILE", "--to=new", "--overwrite"], "--overwrite: has no effect for new, which"),
    "to PyTorch": (["--from=FILE", "--to=new.pt"], "--to: new.pt: files of PyTorch are only read; name a .safetensors"),
    "to a bucket": (["--from=FILE", "--to=hf:s3://a/b"], "hf:s3:/a/b: must be hf:DIRECTORY, a path on a disk of this"),
    "from a bucket": (["--from=hf:gs://a/b", "--to=new"], "hf:gs:/a/b: must be hf:DIRECTORY, a path on a disk of this"),
    "not empty": (["--from=FILE", "--to=DIR"], "is not an empty directory"),
    "unwritable": (["--from=FILE", "--to=FILE/x/y.safetensors"], "model.safetensors/x: cannot be written"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_and_code_2(case, file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TOKENIZER.save(tmp_path / "T")
    before = sorted(tmp_path.iterdir())
    flags, message = ERRORS[case]
    with pytest.raises(SystemExit) as ended:
        run(*(flag.replace("FILE", str(file)).replace("DIR", str(tmp_path)) for flag in flags))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_itself(tmp_path):
    command = [sys.executable, "-m", "psann_jax", "convert", f"--from={tmp_path}", "--to=x"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}: must be a .safetensors file")


def test_psannlm_to_a_run_with_its_warning(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    pytest.importorskip("psannlm")
    torch.save(psannlm_version_012(psannlm_model({"base": "waveresnet", "wave_interleave": True})), tmp_path / "old.pt")
    flags = ("--from", tmp_path / "old.pt", "--to", tmp_path / "run", "--n_heads=4", "--max_length=48")
    with pytest.raises(SystemExit):
        run(*flags)
    assert "has no tokenizer, which a run needs; give one with --tokenizer" in capsys.readouterr().err
    from tokenizers import Tokenizer, models

    vocabulary = {f"w{i}": i for i in range(35)} | {"<eos>": 35, "<unk>": 36}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    run(*flags, "--tokenizer", tmp_path / "tokenizer.json")
    assert "warning: " in capsys.readouterr().err
    assert read_run(tmp_path / "run").config.data.max_length == 48


def test_a_run_is_not_written_over(tmp_path):
    write_run(tmp_path / "run", weights_of("respsann"), "here")
    with pytest.raises(UserError, match="is not an empty directory"):
        write_run(tmp_path / "run", weights_of("respsann"), "here")
