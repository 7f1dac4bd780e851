"""Whether a run may continue, or several processes train together."""

from types import SimpleNamespace

import pytest

from psann_jax.config.io import default_config, parse
from psann_jax.train.resuming import check_same_data, prepare_resuming
from psann_jax.train.start import GIVEN_SHA256
from psann_jax.train.workdir import write_config
from psann_jax.utils.errors import UserError
from tests.support.tiny import tiny_config


def puzzles(file):
    config = default_config("sudoku")
    config.data.files = (file,)
    return parse(config)


def test_processes_with_different_data_are_refused(tmp_path):
    config = tiny_config(tmp_path)
    task = SimpleNamespace(fingerprint=lambda: "2-abc", tokenizer_bytes=lambda: b"")
    check_same_data(task, config, "2-abc")
    expected = r"^data: this process has another content of .*text\.txt, or another tokenizer, than process 0; give"
    with pytest.raises(UserError, match=expected):
        check_same_data(task, config, "2-abd")
    task.tokenizer_bytes = lambda: None
    with pytest.raises(UserError, match=r"another content of a\.csv than process 0; give all the same files$"):
        check_same_data(task, puzzles("a.csv"), "2-abd")


def test_a_run_on_other_puzzles_is_named_by_its_files(tmp_path):
    def resume(file):
        prepare_resuming(3, checkpoints, task, puzzles(file), tmp_path, {GIVEN_SHA256: None})

    checkpoints = SimpleNamespace(metadata=lambda step: {"data": "1-abc"})
    task = SimpleNamespace(fingerprint=lambda: "1-abd", tokenizer_bytes=lambda: None)
    write_config(tmp_path, puzzles("a.csv"))
    with pytest.raises(UserError, match=r": was trained on another content of a\.csv; restore it, or choose another"):
        resume("a.csv")
    expected = r"data\.files is \('a\.csv',\) there and \('b\.csv',\) here, with another content; choose another"
    with pytest.raises(UserError, match=expected):
        resume("b.csv")
