"""Solves Sudoku puzzles with a trained network, in batches whose finished puzzles are replaced by new ones.

Start with `solve` for many puzzles, or with `trace` to follow one. A puzzle has exactly one solution, so a full grid
that keeps the clues and follows the rules is the solution. The search stops at the first such grid.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from psann_jax.config import PuzzlesConfig
from psann_jax.config.sudoku import BUCKETS
from psann_jax.data.sudoku.files import read_puzzles
from psann_jax.data.sudoku.loader import load_puzzles
from psann_jax.data.sudoku.puzzles import Puzzles, stratified_order
from psann_jax.data.sudoku.rules import UNITS_27x9, is_solved
from psann_jax.models.network import Network, Params
from psann_jax.models.sudoku import filled
from psann_jax.runs.restore import LoadedRun
from psann_jax.train.mesh import batch_sharding, num_batch_shards, replicated
from psann_jax.utils.errors import UserError

_CHUNK = 64  # iterations per call of the compiled search, for progress and interruption


@dataclass(frozen=True)
class Solutions:
    """Results for N puzzles.

    Attributes:
      grids_Nx81: the solution if one was found, otherwise the grid of the last iteration, uint8.
      first_N: the first iteration, counted from 1, with a valid grid; 0 if there is none.
      marks_M: numbers of iterations at which validity is recorded.
      valid_NxM: whether the grid after exactly that many iterations is valid. If the search stops at the first valid
        grid, the grid stays valid at all later marks.
      seconds: duration of the search without compilation.
    """

    grids_Nx81: np.ndarray
    first_N: np.ndarray
    marks_M: tuple[int, ...]
    valid_NxM: np.ndarray
    seconds: float

    @property
    def found_NxM(self) -> np.ndarray:
        """Whether there was a valid grid in at most that many iterations."""
        return _found_by(self.first_N, self.marks_M)


def _found_by(first_N: np.ndarray, marks_M: tuple[int, ...]) -> np.ndarray:
    return (first_N[:, None] > 0) & (first_N[:, None] <= np.array(marks_M))


def marks_up_to(iterations: int, least: int) -> tuple[int, ...]:
    """Returns `least` and its doublings below `iterations`, followed by `iterations`."""
    marks = []
    while least < iterations:
        marks.append(least)
        least *= 2
    return (*marks, iterations)


def is_valid(grids_Bx81: jax.Array) -> jax.Array:
    """Checks that every row, column and box of full grids has all nine digits; returns (B,) bool."""
    bits_Bx27x9 = 1 << grids_Bx81.astype(jnp.int32)[:, UNITS_27x9]
    return jnp.all(jax.lax.reduce_or(bits_Bx27x9, axes=(2,)) == 0b1111111110, axis=1)


def select_puzzles(
    run: LoadedRun, file: str | None, max_puzzles: int | None = None, *, progress: bool = False
) -> Puzzles:
    """Loads puzzles to solve. Those whose rating is in no bucket are left out, as in the evaluation of a run.

    Args:
      run: from `load_run`.
      file: a CSV file with columns question, answer and, unless the run has data.ratings=guesses, rating; None means
        the run's validation puzzles.
      max_puzzles: use only so many puzzles, some of every rating, in proportion; None means all, in their order.
      progress: whether to show a progress bar on a terminal, and to say how many puzzles are left out.

    Raises:
      UserError: the file cannot be read, no rating is in a bucket, or the run's puzzles have changed.
    """
    config = cast(PuzzlesConfig, run.config.data)
    if file is not None:
        puzzles = read_puzzles(Path(file), ratings=config.ratings, progress=progress)
    else:
        data = load_puzzles(config, progress)
        if data.fingerprint != run.data:
            raise UserError("data: the puzzles differ from those that the run was trained on; name a file with --data")
        puzzles = data.valid
    rated_N = puzzles.buckets_N >= 0
    names = ", ".join(BUCKETS)
    if not rated_N.any():
        raise UserError(f"{file or 'data'}: no puzzle has a rating in {names}; ratings are whole numbers")
    if progress and not rated_N.all():
        print(f"not used: {(~rated_N).sum():,} puzzles whose rating is in none of {names}", file=sys.stderr)
    puzzles = puzzles.take(rated_N)
    if max_puzzles is None:
        return puzzles
    return puzzles.take(stratified_order(puzzles.buckets_N, config.seed)[:max_puzzles])


def trace(run: LoadedRun, puzzle_81: np.ndarray, *, iterations: int = 1024) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the probabilities (81, 9) and the filled grid (81,) after each iteration, up to the first valid grid.

    Args:
      run: from `load_run`.
      puzzle_81: the clues, 0 for empty cells.
      iterations: most iterations.
    """
    puzzle = jnp.asarray(puzzle_81, jnp.uint8)[None]

    @jax.jit
    def step(params: Params, grid: Any) -> Any:
        grid, logits = run.network.merge(params).iterate(grid)
        return grid, filled(logits, puzzle)[0]

    with jax.set_mesh(run.mesh):
        grid = jax.jit(lambda params: run.network.merge(params).start(puzzle))(run.params)
        for _ in range(iterations):
            grid, digits_81 = step(run.params, grid)
            yield np.asarray(grid[1])[0], np.asarray(digits_81)
            if is_solved(np.asarray(digits_81)[None])[0]:
                return


def attention_weights(run: LoadedRun, puzzle_81: np.ndarray, iteration: int) -> np.ndarray:
    """Returns the attention weights (layers, H, queries, keys) of one puzzle in an iteration, counted from 1."""
    puzzle = jnp.asarray(puzzle_81, jnp.uint8)[None]

    @jax.jit
    def weights(params: Params) -> jax.Array:
        model = run.network.merge(params)
        grid = jax.lax.fori_loop(0, iteration - 1, lambda _, grid: model.iterate(grid)[0], model.start(puzzle))
        return model.attention(grid)[:, 0]

    with jax.set_mesh(run.mesh):
        return np.asarray(weights(run.params))


def solve(
    run: LoadedRun,
    puzzles_Nx81: np.ndarray,
    *,
    iterations: int = 1024,
    stop_at_valid: bool = True,
    batch_size: int = 256,
    progress: bool = False,
) -> Solutions:
    """Runs the network on puzzles until they are solved or run out of iterations.

    A batch slot whose puzzle is finished takes the next puzzle, so that all slots are busy until the puzzles run out.

    Args:
      run: from `load_run`.
      puzzles_Nx81: digits, 0 for empty cells; each puzzle has exactly one solution.
      iterations: most iterations per puzzle.
      stop_at_valid: whether a puzzle ends at its first valid grid. If False, every puzzle gets all iterations, which
        shows whether the network keeps a solution it has found.
      batch_size: puzzles solved at once, rounded up to a multiple of the mesh's batch shards.
      progress: whether to show a progress bar on a terminal.

    Returns:
      The final grids, and the iterations at which they were valid.
    """
    n, marks = len(puzzles_Nx81), marks_up_to(iterations, run.network.config.iterations)
    if not n:
        empty = np.zeros(0, np.int32)
        return Solutions(np.zeros((0, 81), np.uint8), empty, marks, np.zeros((0, len(marks)), bool), 0.0)
    shards = num_batch_shards(run.mesh)
    size = -(-min(batch_size, n) // shards) * shards
    jitted = jax.jit(partial(_search, run.network, stop_at_valid, marks), donate_argnums=2)
    with jax.set_mesh(run.mesh), tqdm(total=n, unit=" puzzles", disable=not (progress and sys.stderr.isatty())) as bar:
        puzzles, state = _first_state(run, puzzles_Nx81, size, len(marks))
        search = jitted.lower(run.params, puzzles, state).compile()
        finished, start_time = 0, time.perf_counter()
        while finished < n:
            state = search(run.params, puzzles, state)
            before, finished = finished, int(state["next"]) - int(jnp.sum(state["puzzle"] < n))
            bar.update(finished - before)
        seconds = time.perf_counter() - start_time
        first_N, valid_NxM, grids_Nx81 = (np.asarray(state[name])[:-1] for name in ("first", "valid", "grids"))
    if stop_at_valid:
        valid_NxM = _found_by(first_N, marks)
    return Solutions(grids_Nx81, first_N, marks, valid_NxM, seconds)


def _first_state(run: LoadedRun, puzzles_Nx81: np.ndarray, size: int, n_marks: int) -> tuple[jax.Array, dict[str, Any]]:
    """Returns the puzzles on the devices, and a search state in which all batch slots are free."""
    n = len(puzzles_Nx81)
    # Slots without a puzzle write to an extra last row.
    puzzles = jnp.concatenate([jnp.asarray(puzzles_Nx81, jnp.uint8), jnp.ones((1, 81), jnp.uint8)])
    start = jax.eval_shape(lambda p: run.network.merge(p).start(puzzles[:size]), run.params)
    slots = {
        "grid": jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), start),
        "puzzle": jnp.full(size, n, jnp.int32),
        "age": jnp.zeros(size, jnp.int32),
    }
    results = {
        "next": jnp.zeros((), jnp.int32),
        "grids": jnp.zeros((n + 1, 81), jnp.uint8),
        "first": jnp.zeros(n + 1, jnp.int32),
        "valid": jnp.zeros((n + 1, n_marks), bool),
    }
    everywhere = replicated(run.mesh)
    state = jax.device_put(slots, batch_sharding(run.mesh)) | jax.device_put(results, everywhere)
    return jax.device_put(puzzles, everywhere), state


def _search(
    network: Network, stop_at_valid: bool, marks: tuple[int, ...], params: Params, puzzles: jax.Array, state: Any
) -> Any:
    """Iterates until no puzzle is left, at most `_CHUNK` times."""
    model, n = network.merge(params), puzzles.shape[0] - 1

    def busy(carry: tuple[jax.Array, Any]) -> jax.Array:
        count, state = carry
        return (count < _CHUNK) & (jnp.any(state["puzzle"] < n) | (state["next"] < n))

    def step(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        count, state = carry
        state = _take_puzzles(model, puzzles, state)
        clues = puzzles[state["puzzle"]]
        grid, logits = model.iterate(state["grid"])
        digits = filled(logits, clues)
        age, valid = state["age"] + 1, is_valid(digits)
        done = age == marks[-1]
        row, known = state["puzzle"], state["first"][state["puzzle"]]
        found = valid & (known == 0)
        # After the first valid grid, the answer is final.
        answer = jnp.where((known > 0)[:, None], state["grids"][row], digits)
        if stop_at_valid:
            done |= valid
        at_mark = age[:, None] == jnp.asarray(marks)
        return count + 1, state | {
            "grid": grid,
            "age": age,
            "grids": state["grids"].at[row].set(answer),
            "first": state["first"].at[row].set(jnp.where(found, age, known)),
            "valid": state["valid"].at[row].set(jnp.where(at_mark, valid[:, None], state["valid"][row])),
            "puzzle": jnp.where(done, n, row),
        }

    return jax.lax.while_loop(busy, step, (jnp.zeros((), jnp.int32), state))[1]


def _take_puzzles(model: Any, puzzles: jax.Array, state: Any) -> Any:
    """Assigns the next puzzles to the free slots."""
    n = puzzles.shape[0] - 1
    free = state["puzzle"] == n
    number = state["next"] + jnp.cumsum(free) - 1  # index of the puzzle that each free slot would take
    taking = free & (number < n)
    puzzle = jnp.where(taking, number, state["puzzle"]).astype(jnp.int32)
    fresh = model.start(puzzles[puzzle])
    grid = jax.tree.map(lambda new, old: jnp.where(taking[:, None, None], new, old), fresh, state["grid"])
    taken = jnp.sum(taking, dtype=jnp.int32)
    return state | {
        "grid": grid,
        "puzzle": puzzle,
        "age": jnp.where(taking, 0, state["age"]),
        "next": state["next"] + taken,
    }
