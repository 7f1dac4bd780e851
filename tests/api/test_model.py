"""psannLM: it trains, resumes, saves, loads and generates; every keyword takes effect or raises an error."""

import json
import subprocess
import sys
from importlib.metadata import version

import jax
import numpy as np
import pytest

import psann_jax
from psann_jax import psannLM, psannLMDataPrep
from psann_jax.api import keywords as api_settings
from psann_jax.cli import convert
from psann_jax.config import ConfigError
from psann_jax.convert.weights import flat_params
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.sine import sine_history
from psann_jax.utils.errors import UserError
from tests.support.processes import environment
from tests.support.tiny import WORDS, prepared, sentences

SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 2}


pytestmark = pytest.mark.usefixtures("own_cache")


def quick(model, data, **options):
    return model.fit(data, **{"max_steps": 3, "batch_tokens": 256, **options})


def equal(a, b):
    a, b = flat_params(a), flat_params(b)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# --- three lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{"d_model": 64, "n_layers": 2}, pytest.param({}, marks=pytest.mark.slow)])
def test_three_lines_train_a_model(sizes):
    texts = sentences(300)
    model = psannLM(base="waveresnet", **sizes)
    model.fit(psannLMDataPrep(texts))
    first, *_, last = (row["loss"] for row in model.history if row["kind"] == "eval")
    assert last < first - 1.5
    train = [row["loss"] for row in model.history if row["kind"] == "train"]
    assert train[-1] < train[0] - 3
    assert set(model.generate("the sun", max_new_tokens=30, seed=1).split()) & set(WORDS)


def test_the_public_names():
    assert psann_jax.__all__ == ["Callback", "__version__", "psannLM", "psannLMDataPrep"]
    assert psann_jax.__version__ == version("psann_jax")
    with pytest.raises(AttributeError, match="psannXX"):
        _ = psann_jax.psannXX


def test_importing_the_command_does_not_import_jax():
    command = [sys.executable, "-c", "import psann_jax.main, sys; print('jax' in sys.modules)"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False"


# --- the model ------------------------------------------------------------------------------------------


def test_every_option_of_the_model_has_a_keyword():
    given = {
        "wave_interleave": True,
        "wave_kernel": 4,
        "wave_dilation_growth": 2,
        "wave_dropout": 0.1,
        "dropout": 0.2,
        "attention": "plain",
        "norm": "layernorm",
        "residual_alpha": False,
        "rope": False,
    }
    model = psannLM(**SMALL, d_mlp=24, sine_params={"freq_init": 1.5, "trainable": False}, **given)._model
    wave = model.wave
    assert (wave.interleave, wave.kernel, wave.dilation_growth, wave.dropout) == (True, 4, 2, 0.1)
    assert (model.dropout, model.attention, model.norm, model.residual_alpha) == (0.2, "plain", "layernorm", False)
    assert (model.sine.freq_init, model.sine.trainable, model.d_mlp) == (1.5, False, 24)
    assert model.positional_encoding == "sinusoidal"
    gate = psannLM("sgrpsann", k_fft=8, gate_type="fourier_features", gate_strength=0.5)._model.spectral
    assert (gate.k_fft, gate.gate_type, gate.gate_strength) == (8, "fourier_features", 0.5)
    assert psannLM(d_model=64)._model.d_mlp == 256
    assert psannLM("ngt", n_positions=64)._model.n_positions == 64, "the default window is no limit"


MODEL_ERRORS = {
    "base": ({"base": "wavresnet"}, "base: unknown base 'wavresnet', did you mean waveresnet?"),
    "unknown": ({"n_layer": 3}, "n_layer: unknown argument, did you mean n_layers?"),
    "wave": ({"wave_kernel_size": 3}, "wave_kernel_size: unknown argument, did you mean wave_kernel?"),
    "inactive": ({"base": "respsann", "wave_interleave": True}, "with base respsann, only with waveresnet"),
    "sine": ({"sine_params": {"frq_init": 1.0}}, "frq_init: unknown argument, did you mean freq_init?"),
    "sizes": ({"d_model": 30, "n_heads": 4}, "d_model: is 30, must be divisible by"),
    "type": ({"d_model": "big"}, "d_model: is 'big', must be of type int"),
    "rope": ({"rope": False, "positional_encoding": "rope"}, "rope: is False, but positional_encoding is not"),
    "heads": ({"d_model": 12, "n_heads": 4}, "positional_encoding: rope needs an even head size"),
}


@pytest.mark.parametrize("case", MODEL_ERRORS)
def test_an_error_in_the_model_names_the_cause(case):
    given, message = MODEL_ERRORS[case]
    with pytest.raises(ConfigError) as caught:
        psannLM(**given)
    assert message in str(caught.value)


def test_a_model_without_weights_raises(tmp_path):
    for use in (lambda m: m.generate("a"), lambda m: m.save(tmp_path / "x"), lambda m: m.params):
        with pytest.raises(UserError, match="has no weights yet; call fit or load first"):
            use(psannLM(**SMALL))
    assert not list(tmp_path.glob("x*"))


# --- fit ------------------------------------------------------------------------------------------------


def test_every_option_of_training_has_a_keyword(tmp_path):
    given = {
        "epochs": 2,
        "steps_per_epoch": 3,
        "lr": 0.02,
        "amp": "bf16",
        "grad_checkpoint": True,
        "warmup_steps": 1,
        "weight_decay": 0.3,
        "grad_clip": 0.7,
        "grad_accum_steps": 2,
        "label_smoothing": 0.1,
        "optimizer": "muon",
        "schedule": "linear",
        "seed": 5,
        "eval_every": 2,
        "checkpoint_every": 4,
        "checkpoint_keep": 1,
        "ddp": "off" if jax.device_count() == 1 else "auto",
    }
    model = psannLM(**SMALL).fit(prepared(), batch_tokens=256, workdir=tmp_path / "run", **given)
    train = model.config.train
    assert (train.steps, train.lr, train.precision, train.remat, train.warmup_steps) == (6, 0.02, "bf16", "block", 1)
    assert (train.weight_decay, train.grad_clip, train.grad_accum, train.label_smoothing) == (0.3, 0.7, 2, 0.1)
    assert (train.optimizer, train.schedule, model.config.seed) == ("muon", "linear", 5)
    assert (model.config.eval.every, model.config.checkpoint.every) == (2, 4)
    assert [row["step"] for row in model.history if row["kind"] == "eval"] == [0, 2, 4, 6]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["lr"] == 0.02


FIT_ERRORS = {
    "unknown": ({"learning_rate": 1.0}, "learning_rate: unknown argument"),
    "renamed": ({"precision": "fp32"}, "precision: unknown argument, it is called amp here"),
    "typo": ({"warmup_step": 3}, "warmup_step: unknown argument, did you mean warmup_steps?"),
    "range": ({"lr": -1.0}, "lr: is -1.0, must be positive"),
    "amp": ({"amp": "int8"}, "amp: is 'int8', must be one of fp32, bf16, fp16"),
    "epochs": ({"epochs": 0}, "epochs: is 0, must be at least 1"),
    "steps": ({"max_steps": 2.5}, "max_steps: is 2.5, must be a whole number"),
    "ddp": ({"ddp": "maybe"}, "ddp: is 'maybe', must be one of auto, on, off"),
    "remat": ({"grad_checkpoint": True, "remat": "dots"}, "remat: cannot be used together with grad_checkpoint"),
    "mesh": ({"tensor": 3}, "tensor: 3 parts do not divide 1 devices"),
    "val": ({"val_data": ["a"]}, "val_data: is of type list, must be a psannLMDataPrep; use psannLMDataPrep(...)"),
}


@pytest.mark.parametrize("case", FIT_ERRORS)
def test_an_error_in_fit_names_the_cause(case):
    given, message = FIT_ERRORS[case]
    with pytest.raises(UserError) as caught:
        psannLM(**SMALL).fit(prepared(), **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_and_text_must_match():
    with pytest.raises(UserError, match=r"^train_data: is of type list, must be a psannLMDataPrep; use"):
        psannLM(**SMALL).fit(sentences())
    with pytest.raises(UserError, match=r"^train_data: is of type str, .*; use psannLMDataPrep\('notes.txt'\)$"):
        psannLM(**SMALL).fit("notes.txt")
    with pytest.raises(UserError, match=r"vocab_size: is 99, but the tokenizer has 260"):
        quick(psannLM(**SMALL, vocab_size=99), prepared())
    model = quick(psannLM(**SMALL), prepared())
    with pytest.raises(UserError, match=r"^train_data: has another tokenizer"):
        quick(model, psannLMDataPrep(sentences(), "bpe", vocab_size=300, max_length=32))


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ((7, None, None, None), 100),
        ((700, None, None, None), 700),
        ((7, 3, None, None), 21),
        ((7, 3, 5, None), 15),
        ((7, 3, 5, 4), 4),
        ((7, None, None, 4), 4),
        ((7, None, 5, None), 5),
        ((7, 1, None, 400), 7),
    ],
)
def test_number_of_steps(given, steps):
    assert api_settings.number_of_steps(*given) == steps


def test_a_batch_is_at_most_the_text(capsys):
    model = psannLM(**SMALL).fit(prepared(), epochs=2, batch_tokens=131072)
    windows = len(prepared())
    assert model.config.train.batch_tokens == windows * 32
    assert model.config.train.steps == 2
    assert f"note: batch_tokens is {windows * 32}, not 131072" in capsys.readouterr().err


def test_the_same_workdir_resumes_exactly(tmp_path):
    data = prepared()
    options = {"lr": 1e-2, "schedule": "constant"}
    whole = psannLM(**SMALL).fit(data, max_steps=6, batch_tokens=256, warmup_steps=0, workdir=tmp_path / "a", **options)
    psannLM(**SMALL).fit(data, max_steps=4, batch_tokens=256, workdir=tmp_path / "b", **options)
    # Defaults chosen by the first fit are kept: the warm-up, a tenth of 4 steps, and the batch size.
    parts = psannLM(**SMALL).fit(data, max_steps=6, workdir=tmp_path / "b", **options)
    assert equal(whole.params, parts.params)
    with pytest.raises(UserError, match=r"holds another run: train.lr is 0.01 there and 0.5 here"):
        psannLM(**SMALL).fit(data, max_steps=8, lr=0.5, schedule="constant", workdir=tmp_path / "b")


def test_a_workdir_continues_only_the_weights_that_its_run_started_from(tmp_path):
    data, run = prepared(60), tmp_path / "run"
    first, second = (quick(psannLM(**SMALL), data, batch_tokens=128, seed=seed) for seed in (1, 2))
    first.save(tmp_path / "first.safetensors")

    def tune(model, max_steps, workdir=run):
        return quick(model, data, batch_tokens=128, max_steps=max_steps, checkpoint_every=2, workdir=workdir)

    tuned = tune(first, 3)
    for other, workdir in ((second, run), (second, tmp_path / "drawn"), (psannLM.load(run, checkpoint=2), run)):
        if workdir != run:
            tune(psannLM(**SMALL), 3, workdir)
        with pytest.raises(UserError, match=rf"^workdir: {workdir}: holds a run that started from other weights; "):
            tune(other, 4, workdir)
    same = tune(psannLM.load(tmp_path / "first.safetensors"), 3)  # the same call, as after a kill
    assert equal(same.params, tuned.params)
    for max_steps, model in ((4, tuned), (5, psannLM.load(run)), (6, psannLM.load(tmp_path / "first.safetensors"))):
        assert tune(model, max_steps).summary["steps"] == max_steps
    assert tune(psannLM.load(run, checkpoint=6), 7).summary["steps"] == 7, "it is the last one"
    with pytest.raises(UserError, match=r"choose another, or load that run without checkpoint or ema_params to contin"):
        tune(psannLM.load(run, checkpoint=6), 8)


def test_a_second_fit_starts_from_the_weights_with_its_own_arguments():
    data = prepared()
    model = quick(psannLM(**SMALL), data, lr=1e-2, max_steps=20)
    reached = model.summary["val_loss"]
    quick(model, data, lr=1e-9, max_steps=2, weight_decay=0.0)
    first_loss = next(row["loss"] for row in model.history if row["kind"] == "eval")
    assert first_loss == pytest.approx(reached, abs=1e-6)
    assert model.summary["val_loss"] == pytest.approx(reached, abs=1e-4)
    assert model.config.train.lr == 1e-9
    before = model.params
    quick(model, data, lr=1e-2)
    assert not equal(before, model.params)


def test_val_data_is_encoded_by_the_training_tokenizer():
    data = psannLMDataPrep(sentences(100), "bpe", vocab_size=300, max_length=32)
    other = psannLMDataPrep(["the sun sings under the moon"])  # one text is enough for validation
    model = quick(psannLM(**SMALL), data, val_data=other)
    n_tokens = next(row["tokens"] for row in model.history if row["kind"] == "eval")
    assert n_tokens == len(data.tokenizer.encode("the sun sings under the moon")) + 1
    assert model.tokenizer.fingerprint == data.tokenizer.fingerprint


def test_without_a_workdir_no_files_remain(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    quick(psannLM(**SMALL), prepared())
    assert not list((tmp_path / "tmp").iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "tmp"]


# --- generation, saving, loading ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory))
        return quick(psannLM(**SMALL), prepared(), max_steps=60, lr=1e-2)


def test_generate_is_generate_batch(model):
    prompts = ["the sun", "a", "bright stone falls under"]
    options = {"max_new_tokens": 16, "temperature": 0.8, "top_k": 20, "top_p": None, "seed": 4}
    texts = model.generate_batch(prompts, **options)
    assert texts == [model.generate(prompt, **options) for prompt in prompts]
    assert len(set(texts)) == 3
    assert model.generate("the", temperature=0) == model.generate("the", top_k=1)
    assert model.generate("the", seed=2) == model.generate("the", seed=2, top_p=0.9, overflow="slide")
    assert model.generate("the", seed=2) != model.generate("the", seed=2, top_p=None)


def test_generation_continues_past_the_window(model):
    done = model.complete(["the sun"], max_new_tokens=60, temperature=0)[0]
    assert done.finish in ("length", "eos")
    stopped = model.complete(["the " * 6], max_new_tokens=60, temperature=0, overflow="stop")[0]
    assert stopped.finish in ("context", "eos")
    assert len(stopped.tokens) <= 32
    assert model.generate("the ", stop=" ", temperature=0) == model.generate("the ", stop=[" "], temperature=0)


GENERATE_ERRORS = {
    "unknown": ({"max_tokens": 3}, "max_tokens: unknown argument, did you mean max_new_tokens?"),
    "top_p": ({"top_p": 0.0}, "top_p: is 0.0, must be above 0"),
    "temperature": ({"temperature": -1.0}, "temperature: is -1.0"),
    "none": ({"max_new_tokens": 0}, "max_new_tokens: is 0, must be at least 1"),
    "samples": ({"num_samples": 3}, "num_samples: is 3, but generate returns one text; use generate_batch"),
    "overflow": ({"overflow": "fly"}, "overflow: is 'fly', must be one of stop, slide"),
}


@pytest.mark.parametrize("case", GENERATE_ERRORS)
def test_an_error_in_generate_names_the_cause(model, case):
    given, message = GENERATE_ERRORS[case]
    with pytest.raises(UserError) as caught:
        model.generate("the", **given)
    assert message in str(caught.value)


def test_a_batch_must_be_a_list(model):
    with pytest.raises(UserError, match=r"^prompts: is one text"):
        model.generate_batch("the")


@pytest.mark.parametrize("name", ["model.safetensors", "directory"])
def test_a_saved_model_is_loaded(model, name, tmp_path):
    model.save(tmp_path / name)
    loaded = psannLM.load(tmp_path / name)
    assert equal(model.params, loaded.params)
    assert loaded.base == "waveresnet"
    assert loaded.config == model.config
    assert loaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert loaded.generate("the", max_new_tokens=12) == model.generate("the", max_new_tokens=12)


def test_a_run_knows_whether_its_weights_were_given(tmp_path):
    """The command sine shows values before training only if they follow from the seed."""
    data, model = prepared(60), psannLM(**SMALL)
    for name, starts_from_seed in (("drawn", True), ("given", False)):
        for max_steps in (2, 3):  # a run and its continuation
            model.fit(data, max_steps=max_steps, batch_tokens=128, workdir=tmp_path / name)
            found = load_text_run(tmp_path / name, max_steps)
            assert found.starts_from_seed == starts_from_seed
            assert bool(sine_history(found)["before"]) == starts_from_seed
    model.save(tmp_path / "weights.safetensors")
    convert.main([f"--from={tmp_path / 'weights.safetensors'}", f"--to={tmp_path / 'imported'}"])
    assert not load_text_run(tmp_path / "imported").starts_from_seed


def test_a_loaded_model_continues_training(model, tmp_path):
    model.save(tmp_path / "m.safetensors")
    loaded = quick(psannLM.load(tmp_path / "m.safetensors"), prepared(), lr=1e-9, weight_decay=0.0)
    first, *_ = (row["loss"] for row in loaded.history if row["kind"] == "eval")
    assert first == pytest.approx(model.summary["val_loss"], abs=1e-6)


def test_a_run_is_loaded(model, tmp_path):
    saved = model
    model = quick(psannLM(**SMALL), prepared(), workdir=tmp_path / "run")
    assert equal(psannLM.load(tmp_path / "run").params, model.params)
    assert equal(psannLM.load(tmp_path / "run", checkpoint=3).params, model.params)
    with pytest.raises(UserError, match=r"^n_heads: has no effect for"):
        psannLM.load(tmp_path / "run", n_heads=2)
    with pytest.raises(UserError, match=r"must be a \.safetensors file"):
        psannLM.load(tmp_path)
    checkpoints = tmp_path / "run" / "checkpoints"
    for load in (psannLM.load, load_text_run):
        with pytest.raises(UserError, match=rf"part of a run; give its workdir {tmp_path / 'run'} with checkpoint 3$"):
            load(checkpoints / "step_3")
        with pytest.raises(UserError, match=rf"give its workdir {tmp_path / 'run'} and choose one of its checkpoints$"):
            load(checkpoints)
    with pytest.raises(UserError, match=r"^path: is .*run, the workdir of a run; name a \.safetensors file or an"):
        saved.save(tmp_path / "run")
    saved.save(tmp_path / "run" / "model.safetensors")
    assert equal(psannLM.load(tmp_path / "run").params, model.params)
    assert equal(psannLM.load(tmp_path / "run" / "model.safetensors").params, saved.params)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_a_model_is_not_saved_under_a_name_of_another_format(model, suffix, tmp_path):
    path = tmp_path / f"m{suffix}"
    with pytest.raises(UserError, match=rf"^path: is {path}, which load reads as a file of PyTorch; name a "):
        model.save(path)
    assert not path.exists()
