"""Callbacks of fit: what a user sees of a stop and of an exception."""

import sys
import tempfile

import pytest

from psann_jax import Callback, psannLM
from psann_jax.config import Config
from psann_jax.train.callbacks import Callbacks
from psann_jax.utils.errors import UserError
from tests.support.tiny import prepared


class Stop(Callback):
    def __init__(self, step):
        self.step, self.seen = step, []

    def on_step_end(self, step, metrics):
        self.seen.append(step)
        self.stop_training = step == self.step


class Fail(Callback):
    def on_evaluate_end(self, step, results):
        if step == 4:
            raise LookupError("lr: no such thing")  # begins like an error about a keyword


@pytest.fixture(scope="module")
def data():
    return prepared(60)


def fit(data, *callbacks, **options):
    model = psannLM(d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    return model, lambda: model.fit(
        data, max_steps=8, batch_tokens=128, eval_every=4, callbacks=callbacks, log_every=1, **options
    )


def test_a_stop_keeps_the_weights_and_the_workdir_resumes(data, tmp_path):
    callback = Stop(3)
    model, run = fit(data, callback, workdir=tmp_path / "run")
    run()
    assert model.summary["stopped"]
    assert model.summary["steps"] in (3, 4)
    assert model.generate("the", max_new_tokens=2) is not None
    callback.step = None
    run()
    assert "stopped" not in model.summary
    assert sorted({*callback.seen}) == [*range(1, 9)]


def test_an_exception_is_raised_as_it_is_and_the_model_has_its_weights(data):
    model, run = fit(data, Fail())
    with pytest.raises(LookupError, match="lr: no such thing") as caught:
        run()
    assert caught.value.__notes__ == ["raised by Fail.on_evaluate_end; the state of the run is saved"]
    assert model.summary["steps"] in (4, 5)
    assert model.summary["stopped"]
    assert model.history[-1]["step"] in (4, 5)
    assert model.generate("the", max_new_tokens=2) is not None


def test_without_a_workdir_an_error_leaves_the_checkpoints(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, run = fit(data, lr=1e30, warmup_steps=0, max_bad_steps=2)
    with pytest.raises(UserError, match=r"max_bad_steps: 2 updates in a row were not finite.* is saved in"):
        run()
    (left,) = tmp_path.glob("psann_jax-*/fit")
    assert f"note: the files of the run stay in {left}; psannLM.load" in capsys.readouterr().err
    assert psannLM.load(left).config.train.max_bad_steps == 2
    _, run = fit(data, Fail(), lr=1e-3)
    with pytest.raises(LookupError):
        run()
    assert [path.parent for path in tmp_path.glob("psann_jax-*/fit")] == [left.parent], "the model has its weights"


def test_a_callback_that_exits_stops_the_run_as_an_exception_does():
    class Exit(Callback):
        def on_step_end(self, step, metrics):
            sys.exit("no more")

    callbacks, reasons = Callbacks([Exit()]), []
    callbacks.begin(Config(), 0, reasons.append)
    callbacks.call("on_step_end", 1, {})
    assert reasons == ["SystemExit in Exit.on_step_end"]
    with pytest.raises(SystemExit, match="no more"):
        callbacks.raise_error()


def test_prompts_of_a_fit_are_in_its_history(data):
    model, run = fit(data, eval_prompts=("the sun",))
    run()
    (first, *_, last) = [row for row in model.history if row["kind"] == "samples"]
    assert (first["step"], last["step"]) == (0, 8)
    assert [text["prompt"] for text in last["texts"]] == ["the sun"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callbacks": Stop(1)}, "callbacks: is of type Stop, must be a list"),
        ({"callbacks": [len]}, r"callbacks\[0\]: is builtin_function_or_method"),
        ({"loggers": ("wandb",)}, "loggers: need a workdir"),
        ({"loggers": ("wandb", "wandb"), "workdir": "unused"}, "loggers: is .*, which repeats one"),
        ({"loggers": "wandb", "workdir": "unused"}, "loggers: is 'wandb', must be a tuple"),
        ({"loggers": ("tensorboard",), "workdir": "unused"}, "loggers.*must be one of wandb, mlflow, trackio"),
        ({"eval_prompts": ("a", "a")}, "eval_prompts: .*repeats one"),
        ({"eval_prompts": ("\ud800",)}, "prompts.*unpaired surrogate"),
    ],
)
def test_wrong_values_name_the_keyword(data, options, message):
    model = psannLM(d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    with pytest.raises(UserError, match=message):
        model.fit(data, max_steps=2, **options)
