"""The command that solves puzzles with a run."""

import dataclasses
import io
import json
import sys

import matplotlib.image
import numpy as np
import pytest

from psann_jax.cli import evaluate, solve
from psann_jax.data.sudoku.rules import grid_text, parse_grid
from psann_jax.data.sudoku.solver import solve_one
from psann_jax.runs.restore import load_run
from psann_jax.runs.sudoku_solver import select_puzzles
from psann_jax.utils.errors import UserError
from tests.support.saved import save_run
from tests.support.tiny import tiny_config

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = grid_text(solve_one(parse_grid(PUZZLE)))


def test_an_unsolved_puzzle_is_shown_with_its_fault(sudoku_run, capsys):
    with pytest.raises(SystemExit) as ended:
        solve.main([f"--workdir={sudoku_run}", f"--puzzle={PUZZLE}", "--iterations=3"])
    assert ended.value.code == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 14
    assert out[1].startswith("| 5  3 (")
    assert out[-1].startswith("not solved after 3 iterations: ")
    assert " appears twice in " in out[-1]


def test_a_solved_puzzle_is_verified_by_rules(sudoku_run, capsys):
    """With one empty cell, a random network is right by chance in some puzzle: try each until one is solved."""
    solution = solve_one(parse_grid(PUZZLE))
    for cell in range(81):
        puzzle = solution.copy()
        puzzle[cell] = 0
        try:
            solve.main([f"--workdir={sudoku_run}", f"--puzzle={grid_text(puzzle)}", "--iterations=1", "--json"])
        except SystemExit:
            capsys.readouterr()
            continue
        answer = json.loads(capsys.readouterr().out)
        assert answer["solved"]
        assert answer["grid"] == grid_text(solution)
        assert answer["iterations"] == 1
        break
    else:
        pytest.fail("none of 81 single empty cells was filled correctly by chance")


def test_watching_and_figures(sudoku_run, capsys, tmp_path):
    with pytest.raises(SystemExit):
        solve.main(
            [f"--workdir={sudoku_run}", f"--puzzle={PUZZLE}", "--iterations=5", "--watch", f"--pictures={tmp_path}"]
        )
    out = capsys.readouterr().out
    assert [f"iteration {i}" in out for i in (1, 5, 6)] == [True, True, False]
    for name in ("confidence", "attention"):
        figure = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert figure.std() > 0.05


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watch(monkeypatch, sudoku_run, steps, *flags):
    """What --watch prints on a terminal, and the seconds it waits, for a network with these grids and probabilities."""
    terminal, waited = Terminal(), []
    monkeypatch.setattr("psann_jax.runs.sudoku_solver.trace", lambda *args, **kwargs: iter(steps))
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit):
        solve.main([f"--workdir={sudoku_run}", f"--puzzle={PUZZLE}", "--watch", *flags])
    monkeypatch.undo()
    return terminal.getvalue(), waited


def test_watching_ends_at_a_fixed_point_with_colours_and_a_delay(sudoku_run, monkeypatch, capsys):
    grid, rng = solve_one(parse_grid(PUZZLE)), np.random.default_rng(0)
    grid[2] = 5  # twice in row 1, column 3 and box 1; one of the others is a clue
    moving = [(rng.random((81, 9)), grid) for _ in range(10)]
    shown, waited = watch(monkeypatch, sudoku_run, [*moving, *[(np.full((81, 9), 0.1), grid)] * 50])
    assert waited == [0.1] * 19
    assert "iteration 19" in shown
    assert "iteration 20" not in shown
    assert "not solved after 19 iterations, at a fixed point: 5 appears twice in row 1" in shown
    red, green = "\x1b[31m 5 \x1b[0m", "\x1b[32m 6 \x1b[0m"
    assert red in shown
    assert green in shown
    assert "(" not in shown
    shown, waited = watch(monkeypatch, sudoku_run, moving, "--delay=0")
    assert "iteration 10" in shown
    assert "fixed point" not in shown
    assert waited == [0] * 10
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in watch(monkeypatch, sudoku_run, moving)[0]
    capsys.readouterr()


def test_the_validation_puzzles_by_default(sudoku_run, capsys):
    solve.main([f"--workdir={sudoku_run}", "--iterations=10", "--never_stop", "--ema", "--json"])
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    n_solved = round(result["results"][-1]["solved"] * result["puzzles"])
    assert f"{n_solved} of {result['puzzles']} solved in " in shown.err
    assert (result["solved_per_s"] > 0) == (n_solved > 0)
    assert [row["iterations"] for row in result["results"]] == [2, 4, 8, 10]
    assert {"solved", "solved_low", "solved_high", "solved_0", "solved_1-2"} <= set(result["results"][0])
    assert result["puzzles"] > 20
    assert (sudoku_run / "accuracy_by_iterations.png").stat().st_size > 5000
    solve.main([f"--workdir={sudoku_run}", "--iterations=16", "--max_puzzles=5"])
    out = capsys.readouterr()
    assert out.out.splitlines()[0].split() == ["iterations", "all", "0", "1-2"]
    assert "5 puzzles" in out.err
    assert "left out of the balanced mean: 0 (" in out.err


def test_a_file_of_puzzles(sudoku_run, capsys, tmp_path):
    path = tmp_path / "some.csv"
    path.write_text(f"source,question,answer,rating\nme,{PUZZLE},{ANSWER},7\n")
    solve.main([f"--workdir={sudoku_run}", f"--data={path}", "--iterations=2", "--json"])
    assert set(json.loads(capsys.readouterr().out)["results"][0]) >= {"solved_3-10"}


def test_puzzles_are_rated_as_in_the_run(sudoku_run, tmp_path):
    path = tmp_path / "some.csv"
    path.write_text(f"question,answer\n{PUZZLE},{ANSWER}\n")
    run = load_run(sudoku_run)
    with pytest.raises(UserError, match="has no column 'rating'"):
        select_puzzles(run, str(path))
    data = dataclasses.replace(run.config.data, ratings="guesses")
    guessing = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
    assert select_puzzles(guessing, str(path)).ratings_N.tolist() == [0.0]


def test_puzzles_of_no_bucket_are_left_out(sudoku_run, capsys, tmp_path):
    """They are in no column of the table, so they must not be in the totals either."""
    path = tmp_path / "some.csv"
    ratings = (2.5, 7, -1)
    path.write_text("question,answer,rating\n" + "".join(f"{PUZZLE},{ANSWER},{rating}\n" for rating in ratings))
    solve.main([f"--workdir={sudoku_run}", f"--data={path}", "--iterations=2", "--json"])
    out = capsys.readouterr()
    assert json.loads(out.out)["puzzles"] == 1
    assert "not used: 2 puzzles whose rating is in none of 0, 1-2, 3-10, 11-50, 51+\n" in out.err
    assert "of 1 solved" in out.err
    path.write_text(path.read_text().replace(",7\n", ",10.5\n"))
    with pytest.raises(UserError, match=r"some\.csv: no puzzle has a rating in 0, 1-2, .*; ratings are whole numbers$"):
        solve.main([f"--workdir={sudoku_run}", f"--data={path}", "--iterations=2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--puzzle=123"], "--puzzle: has 3 characters, must have 81"),
        ([f"--puzzle={PUZZLE[:-1]}x"], "--puzzle: 'x' at character 81 is not a digit"),
        ([f"--puzzle=55{PUZZLE[2:]}"], "--puzzle: contradictory clues: 5 appears twice in row 1"),
        ([f"--puzzle={'.' * 81}"], "--puzzle: the puzzle has several solutions"),
        (["--data=nowhere.csv"], "nowhere.csv"),
        ([f"--puzzle={PUZZLE}", "--pictures=/dev/null"], "--pictures: /dev/null: is a file, must be a directory"),
        ([f"--puzzle={ANSWER}", "--pictures=x"], "--pictures: there is nothing to show of a puzzle without an empty"),
    ],
)
def test_bad_puzzles(sudoku_run, arguments, message):
    with pytest.raises(UserError) as error:
        solve.main([f"--workdir={sudoku_run}", *arguments])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"--puzzle={PUZZLE}", "--data=x.csv"], "--data: cannot be used together with --puzzle"),
        ([f"--puzzle={PUZZLE}", "--never_stop"], "--never_stop: has no effect with --puzzle"),
        ([f"--puzzle={PUZZLE}", "--delay=1"], "--delay: has no effect without --watch"),
        ([f"--puzzle={PUZZLE}", "--watch", "--delay=-1"], "--delay: is -1.0, must be from 0 to 60 seconds"),
        ([f"--puzzle={PUZZLE}", "--watch", "--delay=nan"], "--delay: is nan, must be from 0 to 60 seconds"),
        (["--watch"], "--watch: has no effect without --puzzle"),
        ([f"--puzzle={PUZZLE}", "--watch", "--json"], "--watch: cannot be used together with --json"),
        (["--iterations=0"], "--iterations: is 0, must be at least 1"),
    ],
)
def test_bad_flags(sudoku_run, arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        solve.main([f"--workdir={sudoku_run}", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_commands_for_text_refuse_the_run(sudoku_run):
    with pytest.raises(UserError, match="is a run of base sudoku, which this command does not support"):
        evaluate.main([f"--workdir={sudoku_run}"])


def test_ema_weights_differ_from_the_live_ones(sudoku_run):
    from psann_jax.runs.restore import load_run

    live, ema_params = (load_run(sudoku_run, ema_params=choice).params for choice in (False, True))
    assert not np.array_equal(live["head"]["kernel"], ema_params["head"]["kernel"])


def test_a_run_on_text_is_refused(tmp_path):
    save_run(tmp_path / "run", tiny_config(tmp_path), {4: 1.0})
    with pytest.raises(UserError, match="is a run of base waveresnet, which this command does not support"):
        solve.main([f"--workdir={tmp_path / 'run'}"])
