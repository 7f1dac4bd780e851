"""Arguments of any type: each is accepted, or refused in one line that begins with its name."""

import inspect
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from psann_jax import psannLM
from psann_jax.api import keywords
from psann_jax.api import model as api
from psann_jax.config.families import families
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.sample import text
from psann_jax.sample.text import TextSampler
from psann_jax.utils.errors import UserError
from tests.support.permissions import forbidden
from tests.support.tiny import prepared

pytestmark = pytest.mark.usefixtures("own_cache")

ODD = [None, True, 0, -1, 5, 1.5, math.nan, math.inf, 10**400, "", "x", "\udc80", b"x", [], [1], (None,), {}, {1: 2}]
ODD += [set(), object(), Path("x"), len, 1j]
SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 2}


class ReachedError(Exception):
    """The arguments were accepted."""


def refused(call, name, value):
    """Checks a call with one odd value; returns whether it was refused."""
    try:
        call(**{name: value})
    except UserError as error:
        message = str(error)
        assert "\n" not in message, (name, value)
        assert not message.startswith(("model.", "train.", "data.")) or f".{name}" in message, (name, value, message)
        return True
    except ReachedError:
        pass
    return False


def n_refused(call, name):
    return sum(refused(call, name, value) for value in ODD)


def names_of(function, *more):
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.name not in ("self", "options")] + list(more)


@pytest.mark.parametrize("base", [b for b in families() if b != "sudoku"])
def test_constructor(base):
    def make(**given):
        return psannLM(**{"base": base, **SMALL, **given})

    model, _ = keywords.model_keywords(base)
    for name in names_of(psannLM.__init__, *model.settings):
        assert n_refused(make, name), name


def test_fit(monkeypatch):
    def stop(*args, **kwargs):
        raise ReachedError

    monkeypatch.setattr(api, "train_run", stop)
    data, model = prepared(), psannLM(**SMALL)

    def fit(**given):
        return model.fit(**{"train_data": data, "max_steps": 2, "batch_tokens": 256, **given})

    for name in names_of(psannLM.fit, *keywords.FIT.settings):
        assert n_refused(fit, name), name


SIZES = SimpleNamespace(vocab_size=300, max_length=32)  # of a sampler


def test_generation(monkeypatch):
    def stop(*args, **kwargs):
        raise ReachedError

    monkeypatch.setattr(psannLM, "_text_sampler", lambda self: TextSampler(SIZES, byte_tokenizer()))
    monkeypatch.setattr(text, "Generation", stop)
    model = psannLM(**SMALL)
    for function in (model.generate, model.generate_batch, model.complete):

        def call(function=function, **given):
            first = names_of(function)[0]
            return function(**{first: "a" if first == "prompt" else ["a"], **given})

        for name in names_of(function, *keywords.GENERATE.settings):
            # A prompt may be any text.
            assert n_refused(call, name), name
    assert all(refused(model.generate, "prompt", value) for value in ODD if not isinstance(value, str))


def test_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in [v for v in ODD if v is not None] + ["~nobody-has-this-name/x", "x" * 304, "x\0y", tmp_path]:
        assert refused(psannLM.load, "path", value), value
        if value != tmp_path:
            assert refused(lambda value=value, **_: psannLM.load("x.safetensors", tokenizer=value), "", value), value
    model = psannLM(**SMALL)
    assert all(refused(model.save, "path", value) for value in ODD)


def test_a_forbidden_workdir_is_a_user_error(tmp_path):
    with forbidden(tmp_path / "secret") as path, pytest.raises(UserError, match=r"json: cannot be read: Perm"):
        keywords.sized_as_in(path / "config.json", None)
