"""Sample texts: what they continue, that they repeat, and their command."""

import dataclasses
import json

import jax
import pytest

from psann_jax.cli import samples as command
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.samples import write_samples
from psann_jax.sample.prompts import sample_settings, sample_texts
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.sample.text import TextSampler
from psann_jax.utils.errors import UserError
from tests.support.saved import save_run
from tests.support.tiny import tiny_config

SETTINGS = sample_settings(())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a small model with random parameters."""
    folder = tmp_path_factory.mktemp("samples")
    save_run(folder / "run", tiny_config(folder, model__n_layers=1), {5: 1.0})
    return folder / "run"


@pytest.fixture(scope="module")
def texts(workdir):
    run = load_text_run(workdir)
    return sample_texts(TextSampler(run.sampler(), run.tokenizer), ())


def test_every_prompt_is_continued_at_every_temperature(workdir, texts):
    pairs = [(t["prompt"], t["temperature"]) for t in texts]
    assert pairs == [(p, t) for p in SETTINGS["prompts"] for t in SETTINGS["temperatures"]]
    run = load_text_run(workdir)
    options = GenerationOptions(max_new_tokens=64, seed=0)
    (greedy,) = TextSampler(run.sampler(), run.tokenizer).complete(["The"], Sampling(temperature=0), options)
    assert texts[2]["text"] == greedy.text


def test_the_command_writes_the_same_texts_again(workdir, texts, tmp_path, capsys):
    command.main([f"--workdir={workdir}"])
    shown = capsys.readouterr()
    assert shown.out == f"{workdir / 'samples.json'}\n"
    assert "step 5" in shown.err
    assert json.loads((workdir / "samples.json").read_text()) == {"step": 5, **SETTINGS, "samples": texts}
    command.main([f"--workdir={workdir}", f"--out={tmp_path / 'a.json'}"])
    assert (tmp_path / "a.json").read_bytes() == (workdir / "samples.json").read_bytes()


def test_a_diverged_run_is_refused(workdir, tmp_path):
    run = load_text_run(workdir)
    run = dataclasses.replace(run, params=jax.tree.map(lambda p: p * float("nan"), run.params))
    with pytest.raises(UserError, match="the network's logits are not finite"):
        write_samples(tmp_path / "a.json", run)
    assert not (tmp_path / "a.json").exists()
