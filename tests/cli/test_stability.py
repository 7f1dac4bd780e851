"""The command that follows puzzles over many iterations."""

import json

import pytest

from psann_jax.cli import stability
from psann_jax.utils.errors import UserError


def test_files_and_tables(sudoku_run, capsys, tmp_path):
    stability.main(
        [f"--workdir={sudoku_run}", "--iterations=5", "--max_puzzles=12", "--radii=2", f"--out={tmp_path / 'new'}"]
    )
    out = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "new" / "stability.json").read_text())
    assert (tmp_path / "new" / "stability.png").stat().st_size > 5000
    assert result["puzzles"] == sum(result["groups"].values()) == 12
    assert [row["iteration"] for row in result["iterations"]] == [1, 2, 3, 4, 5]
    assert [line.split()[0] for line in out[1:5]] == ["1", "2", "4", "5"]
    assert out[4].split()[1] == str(result["iterations"][-1]["valid"])
    assert 1 <= len(result["radii"]) <= 10
    assert all(state["radius"] > 0 for state in result["radii"])
    assert out[-2:] == [str(tmp_path / "new" / f"stability.{end}") for end in ("json", "png")]


def test_bad_flags_and_places(sudoku_run, capsys, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        stability.main([f"--workdir={sudoku_run}", "--radii=0"])
    assert ended.value.code == 2
    assert "--radii: is 0, must be at least 1" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("psann_jax.runs.restore.load_run", lambda *_, **__: pytest.fail("the work has begun"))
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=rf"^--out: {tmp_path}/file: is a file, must be a directory$"):
            stability.main([f"--workdir={sudoku_run}", "--iterations=1", "--radii=1", f"--out={out}"])
