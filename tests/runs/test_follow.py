"""evaluate --follow: every checkpoint once, beside a training that saves and deletes."""

import json
import shutil
import threading

import pytest

from psann_jax.cli import evaluate as command
from psann_jax.runs import follow
from psann_jax.runs.follow import EVALUATIONS, Follower
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.metrics import read_metrics
from psann_jax.utils.errors import UserError
from tests.support.tiny import tiny_config, write_text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a complete run with a checkpoint at each of its evaluations."""
    tmp_path = tmp_path_factory.mktemp("followed")
    config = tiny_config(
        tmp_path, model__n_layers=1, train__steps=6, eval__every=2, checkpoint__every=2, checkpoint__keep=3
    )
    loop.train(config, lambda: LanguageModel.load(config, progress=False), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def workdir(trained, tmp_path, monkeypatch):
    """A copy of the run."""
    monkeypatch.setattr(follow, "_POLL_S", 0.02)
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / EVALUATIONS).read_text().splitlines()]


def test_a_complete_run_is_evaluated_once_with_its_own_losses(workdir, capsys):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    command.main([f"--workdir={workdir}", "--follow"])
    expected = {row["step"]: row for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "eval"}
    rows = rows_of(workdir)
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        for name in ("loss", "ppl", "accuracy", "bits_per_byte"):
            assert row[name] == pytest.approx(expected[row["step"]][name], rel=1e-6), name
        assert {"loss_stderr", "by_position", "text", "settings"} <= row.keys()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 2", "step 4", "step 6"]
    assert lines[2].split("  ")[1] == f"loss {rows[2]['loss']:,.6g}"
    assert {path: path.read_bytes() for path in before} == before, "the files of the run are not changed"
    assert {path for path in workdir.rglob("*") if path.is_file()} - before.keys() == {workdir / EVALUATIONS}
    command.main([f"--workdir={workdir}", "--follow"])
    assert capsys.readouterr().out == ""
    assert rows_of(workdir) == rows


def test_other_settings_are_evaluated_anew_and_json_gives_whole_rows(workdir, tmp_path, capsys):
    command.main([f"--workdir={workdir}", "--follow"])
    capsys.readouterr()
    source = write_text(tmp_path / "other.txt", n_lines=30, seed=3)
    command.main([f"--workdir={workdir}", "--follow", "--json", f"--data={source}"])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows_of(workdir)[3:] == printed
    assert [row["step"] for row in printed] == [2, 4, 6]
    assert {row["settings"]["data"] for row in printed} == {str(source)}
    write_text(source, n_lines=30, seed=4)
    (workdir / "checkpoints" / "step_2").rename(workdir / "checkpoints" / "step_3")
    with pytest.raises(UserError, match=f"{EVALUATIONS}: has evaluations of another text"):
        command.main([f"--workdir={workdir}", "--follow", f"--data={source}"])


class Source:
    """Checkpoints that a test adds and deletes while a follower reads them."""

    def __init__(self, workdir, monkeypatch):
        self.workdir, self.steps, self.complete, self.said, self.loaded = workdir, [], False, [], []
        monkeypatch.setattr(follow, "_POLL_S", 0.01)
        monkeypatch.setattr(Follower, "_steps", lambda _: sorted(self.steps))
        monkeypatch.setattr(Follower, "_run_is_complete", lambda _: self.complete)

    def rows(self, load=None, settings=None, text="text", **options):
        follower = Follower(self.workdir, settings or {}, self.said.append)
        return follower.run(load or self.load, lambda step: {"text": text, "loss": step / 2}, **options)

    def load(self, step):
        self.loaded.append(step)
        if step not in self.steps:
            raise FileNotFoundError(step)
        return step


@pytest.fixture
def source(tmp_path, monkeypatch):
    return Source(tmp_path, monkeypatch)


def test_checkpoints_of_a_training_run_are_evaluated_as_they_appear(source):
    source.steps, found = [1, 2], []
    for row in source.rows():
        found.append(row["step"])
        if row["step"] == 2:
            threading.Timer(0.05, source.steps.append, [3]).start()
        source.complete = row["step"] == 3
    assert found == [1, 2, 3]
    assert source.said == [f"{source.workdir}: waiting for the next checkpoint"]


def test_deleted_checkpoints_are_skipped(source):
    source.steps = [1, 2, 3]

    def load(step):
        if step == 2:
            source.steps.remove(2)  # as the training does, between listing and reading
        return source.load(step)

    source.complete = True
    assert [row["step"] for row in source.rows(load)] == [1, 3]
    assert source.said == ["step 2: skipped; deleted by the training"]


def test_a_damaged_checkpoint_is_reported_and_skipped_unless_it_is_the_first(source):
    def load(step):
        if step == 2:
            raise UserError("step_2: the checkpoint is damaged")
        return source.load(step)

    source.complete, source.steps = True, [1, 2, 3]
    assert [row["step"] for row in source.rows(load)] == [1, 3]
    assert source.said == ["step 2: skipped; step_2: the checkpoint is damaged"]
    with pytest.raises(UserError, match="damaged"):
        list(source.rows(load))


def test_the_timeout_counts_from_the_last_checkpoint(source):
    source.steps = [1]
    assert [row["step"] for row in source.rows(timeout_s=0.05)] == [1]
    assert list(source.rows(timeout_s=0.05)) == []


@pytest.mark.parametrize("cut", [1, 20])
def test_a_killed_command_repeats_nothing_but_the_row_that_was_cut_off(source, cut):
    source.complete, source.steps = True, [1, 2]
    list(source.rows())
    path = source.workdir / EVALUATIONS
    path.write_bytes(path.read_bytes()[:-cut])
    repeated = [] if cut == 1 else [2]
    assert [row["step"] for row in source.rows()] == repeated
    source.steps.append(3)
    assert [row["step"] for row in source.rows()] == [3]
    assert list(source.rows()) == []


def test_two_commands_with_other_settings_share_the_file(source):
    source.complete, source.steps = True, [1, 2]
    pairs = zip(source.rows(settings={"data": "a"}), source.rows(settings={"data": "b"}, text="b"), strict=True)
    assert [(a["step"], b["step"]) for a, b in pairs] == [(1, 1), (2, 2)]
    assert len(rows_of(source.workdir)) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--timeout=5"], "--timeout: has no effect without --follow"),
        (["--follow", "--timeout=0"], "--timeout: is '0', must be a positive number"),
        (["--follow", "--checkpoint=best"], "--checkpoint: has no effect with --follow"),
    ],
)
def test_flags_without_an_effect_are_refused(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        command.main([f"--workdir={tmp_path}", *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_workdir_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no such directory; give the workdir of a run"):
        command.main([f"--workdir={tmp_path / 'no'}", "--follow"])


def test_a_line_has_zeros_but_no_missing_values():
    row = {"step": 3, "loss": 5.0, "ppl": None, "accuracy": 0.0, "bits_per_byte": 7.5}
    assert command._line(row) == "step 3  loss 5  accuracy 0  bits_per_byte 7.5"
