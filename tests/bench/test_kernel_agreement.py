"""bench kernels: errors relative to the reference, and what counts as a difference."""

import jax
import pytest

from psann_jax.bench import kernel_agreement
from psann_jax.config.io import default_config, parse
from tests.support.tiny import tiny_config


def small(tmp_path, precision="fp32"):
    return tiny_config(tmp_path, train__precision=precision, model__dropout=0.0)


@pytest.mark.slow
def test_the_errors_are_those_of_the_precision(tmp_path):
    comparison = kernel_agreement.make()
    loss = comparison.reference(small(tmp_path))
    assert 4 < loss < 7
    same, _ = comparison.errors(small(tmp_path))
    rounded, _ = comparison.errors(small(tmp_path, "bf16"))
    assert max(same.values()) < 1e-5
    assert 1e-4 < max(error for name, error in rounded.items() if name != "loss") < 0.2
    assert {"loss", "embed", "head", "blocks.attn.q.kernel"} <= set(same)


@pytest.mark.parametrize("nan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_wrong_gradient_shows(nan, tmp_path, monkeypatch):
    comparison = kernel_agreement.make()
    comparison.reference(small(tmp_path))
    true = kernel_agreement._loss_and_gradients

    def wrong(config):
        found, implementations = true(config)
        return found | {"embed": (float("nan") if nan else 1.5) * found["embed"]}, implementations

    monkeypatch.setattr(kernel_agreement, "_loss_and_gradients", wrong)
    errors, _ = comparison.errors(small(tmp_path))
    assert errors["embed"] == (float("inf") if nan else pytest.approx(0.5, rel=1e-3))
    assert errors["head"] < 1e-5


def blind_to(task, name):
    """Makes the gradient of a parameter zero."""
    loss = task.loss
    task.loss = lambda params, *rest: loss(params | {name: jax.lax.stop_gradient(params[name])}, *rest)
    return task


@pytest.mark.parametrize("lost", ["found", pytest.param("expected", marks=pytest.mark.slow)])
def test_a_gradient_that_is_zero_in_one_of_both_shows(lost, tmp_path, monkeypatch):
    comparison, true = kernel_agreement.make(), kernel_agreement.random_task
    for name in ("expected", "found"):
        task = (lambda config: blind_to(true(config), "embed")) if name == lost else true
        monkeypatch.setattr(kernel_agreement, "random_task", task)
        if name == "expected":
            comparison.reference(small(tmp_path))
        else:
            errors, _ = comparison.errors(small(tmp_path))
    assert errors["embed"] >= 1
    assert errors["head"] < 1e-5


class StubWorker:
    """In place of the process: the reference, then the errors of plain implementations and of kernels."""

    errors = ({"loss": 1e-6, "w": 0.01}, {"loss": 1e-6, "w": 0.05})

    def __init__(self, *_):
        self.facts, self.asked = {"device": "a card"}, []
        StubWorker.last = self
        self.answers = iter([5.0, (self.errors[0], {}), (self.errors[1], {"sine": ["triton"]})])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, method, config):
        self.asked.append(config)
        return next(self.answers)


@pytest.mark.parametrize(("error", "failed"), [(0.05, ["w"]), (0.015, []), (float("inf"), ["w"])])
def test_kernels_may_not_be_worse_than_rounding(error, failed, monkeypatch):
    monkeypatch.setattr(StubWorker, "errors", ({"loss": 1e-6, "w": 0.01}, {"loss": 1e-6, "w": error}))
    monkeypatch.setattr(kernel_agreement, "Worker", StubWorker)
    result = kernel_agreement.measure(parse(default_config("transformer")))
    assert (result["ok"], result["failed"]) == (not failed, failed)
    lines = kernel_agreement.report(result).splitlines()
    assert lines[0] == "a card; transformer, bf16; sine triton"
    assert lines[-1].endswith("differ in w" if failed else "agree within rounding")
    assert jax.default_backend() == "cpu"


@pytest.mark.parametrize(("base", "kernel"), [("transformer", "cudnn"), ("ngt", "pallas"), ("sudoku", None)])
def test_the_reference_has_no_kernel_that_the_config_demands(base, kernel, monkeypatch):
    monkeypatch.setattr(kernel_agreement, "Worker", StubWorker)
    config = default_config(base)
    if kernel:
        config.model.attention = kernel
    kernel_agreement.measure(parse(config))
    reference, plain, tested = (asked.model for asked in StubWorker.last.asked)
    assert (reference.kernels, plain.kernels, tested.kernels) == ("plain", "plain", "auto")
    if kernel:
        assert (reference.attention, plain.attention, tested.attention) == ("auto", "auto", kernel)
