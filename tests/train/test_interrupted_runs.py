"""What a run keeps when it was stopped where something is half done, and when its text has moved."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.metrics import read_metrics
from psann_jax.train.start import StartingWeights
from psann_jax.utils.checksums import CHECKSUMS
from psann_jax.utils.errors import UserError
from tests.support.loop_runs import assert_same_end, rows_of, stop_at, with_sections


@pytest.mark.parametrize("step", [4, 8])
def test_killed_before_the_checksums_and_resumed_keeps_the_best(run, base, tmp_path, monkeypatch, uninterrupted, step):
    save_and_evaluate = loop._Run._save_and_evaluate_if_due

    def save_evaluate_and_end(self):
        save_and_evaluate(self)
        if self.step == step:
            raise KeyboardInterrupt
        return True

    config = with_sections(base[1], checkpoint={"keep": 3, "every": 100})
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "_finish", lambda *_: None)  # the rest of a save, after its rename
        patched.setattr(loop._Run, "_save_and_evaluate_if_due", save_evaluate_and_end)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", config)
    assert not (tmp_path / "run" / "checkpoints" / f"step_{step}" / CHECKSUMS).exists()
    losses = [row["loss"] for row in rows_of(tmp_path / "run") if row["kind"] == "eval"]
    run(tmp_path / "run", config)
    index = json.loads((tmp_path / "run" / "checkpoints" / "index.json").read_bytes())
    assert index["metrics"][str(step)]["val_loss"] == min(losses)
    assert (tmp_path / "run" / "checkpoints" / f"step_{step}" / CHECKSUMS).exists()
    assert_same_end(tmp_path / "run", base, uninterrupted)


@pytest.mark.parametrize("first", [1.0, math.nan])
def test_the_best_is_one_after_the_first_update(base, run, tmp_path, monkeypatch, first):
    """Also if the weights that a run starts from are better: of these no checkpoint exists."""
    losses = {0: first, 2: 3.0, 4: 2.0, 6: 4.0, 8: 5.0}
    evaluate = loop._Run._evaluate
    monkeypatch.setattr(loop._Run, "_evaluate", lambda self: evaluate(self) | {"loss": losses[self.step]})
    config = with_sections(base[1], checkpoint={"keep": 1, "every": 100}, eval={"every": 2})
    run(tmp_path / "run", config)
    index = json.loads((tmp_path / "run" / "checkpoints" / "index.json").read_bytes())
    assert (index["best"], index["last"]) == (4, 8)


def test_a_start_that_only_does_the_end_knows_the_speed(run, base, tmp_path, monkeypatch):
    stop_at(monkeypatch, step=8, call=1)
    run(tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(loop, "compile_steps", lambda *_: base[3])
    summary = run(tmp_path / "run")
    speeds = [row["tokens_per_s"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert min(speeds) < summary["tokens_per_s"] < max(speeds)
    assert 0 < summary["data_wait"] < 1


def test_a_start_without_a_checkpoint_keeps_nothing_of_the_one_before(base, run, tmp_path, monkeypatch, uninterrupted):
    other = {"from": "elsewhere", "step": 3}
    given = StartingWeights(jax.tree.map(np.asarray, uninterrupted[2]["params"]), "given", other)

    def fail(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_steps", fail)
        with pytest.raises(KeyboardInterrupt):
            loop.train(base[1], lambda: base[2], tmp_path / "run", initial_params=lambda *_: given)
    assert json.loads((tmp_path / "run" / "initial_weights.json").read_bytes()) == other
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [0]
    run(tmp_path / "run")
    assert not (tmp_path / "run" / "initial_weights.json").exists()
    assert_same_end(tmp_path / "run", base, uninterrupted)


def test_the_same_command_resumes_after_the_steps_that_it_traced(base, tmp_path, monkeypatch, uninterrupted):
    monkeypatch.setattr(loop, "compile_steps", lambda *_: base[3])
    with monkeypatch.context() as patched:
        stop_at(patched, step=4)
        loop.train(base[1], lambda: base[2], tmp_path / "run", profile_steps="2:3")
    loop.train(base[1], lambda: base[2], tmp_path / "run", profile_steps="2:3")
    assert_same_end(tmp_path / "run", base, uninterrupted)


def test_a_text_may_move_but_not_change(base, run, tmp_path, monkeypatch, uninterrupted):
    _, config, _, _ = base
    moved = tmp_path / "moved.txt"
    shutil.copy(base[0] / "text.txt", moved)
    elsewhere = with_sections(config, data={"sources": (str(moved),)})
    stop_at(monkeypatch, step=0)
    run(tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(loop, "compile_steps", lambda *_: base[3])
    task = LanguageModel.load(elsewhere, progress=False)
    run(tmp_path / "run", elsewhere, task)
    assert_same_end(tmp_path / "run", base, uninterrupted)
    assert json.loads((tmp_path / "run" / "config.json").read_bytes())["data"]["sources"] == [str(moved)]
    moved.write_text(moved.read_text() + "more\n")
    with pytest.raises(
        UserError, match=r"was trained on another content of .*/moved\.txt or with another tokenizer; restore"
    ):
        run(tmp_path / "run", elsewhere, LanguageModel.load(elsewhere, progress=False))
    (tmp_path / "rows").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "rows")
    with pytest.raises(UserError, match=r"holds another run: data\.sources is"):
        run(tmp_path / "rows")
