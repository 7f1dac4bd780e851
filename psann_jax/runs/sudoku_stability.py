"""What becomes of Sudoku grids when a trained network goes on iterating, and how it reacts to a small change.

Start with `follow` for puzzles over many iterations, without a stop at a valid grid, and with `spectral_radii` for the
iteration as a map from state to state, at chosen states. `summarise` turns the first into numbers by iteration.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from psann_jax.data.sudoku.puzzles import Puzzles
from psann_jax.models.network import Network, Params
from psann_jax.models.sudoku import filled
from psann_jax.runs.restore import LoadedRun
from psann_jax.runs.sudoku_solver import is_valid

# What became of a puzzle: its grid is valid at the end; was valid once; never was.
GROUPS = ("kept", "lost", "unsolved")
_PRODUCTS = 200  # of the Jacobian with a vector, for one spectral radius


@dataclass(frozen=True)
class Trajectories:
    """N puzzles over T iterations.

    Attributes:
      valid_TxN: whether the grid follows the rules, bool.
      changed_TxN: cells whose digit is not the one before, all empty cells in the first iteration.
      wrong_TxN: cells whose digit is not the solution's.
      confidence_TxN: the mean probability of the digits in the wrong cells; NaN if there are none.
      size_TxN: root mean square of the hidden states.
      distance_TxN: root mean square of their change in this iteration, divided by `size_TxN`.
      angle_TxN: the angle by which they turn in this iteration, in degrees.
    """

    valid_TxN: np.ndarray
    changed_TxN: np.ndarray
    wrong_TxN: np.ndarray
    confidence_TxN: np.ndarray
    size_TxN: np.ndarray
    distance_TxN: np.ndarray
    angle_TxN: np.ndarray

    @property
    def groups_N(self) -> np.ndarray:
        """Index into `GROUPS` for each puzzle."""
        return np.where(self.valid_TxN[-1], 0, np.where(self.valid_TxN.any(axis=0), 1, 2))

    @property
    def first_N(self) -> np.ndarray:
        """The first iteration, counted from 1, with a valid grid; 0 if there is none."""
        return np.where(self.valid_TxN.any(axis=0), 1 + self.valid_TxN.argmax(axis=0), 0)


def follow(
    run: LoadedRun, puzzles: Puzzles, *, iterations: int, batch_size: int = 256, progress: bool = False
) -> Trajectories:
    """Runs all iterations on all puzzles.

    Args:
      run: from `load_run`.
      puzzles: at least one, with their solutions.
      iterations: T.
      batch_size: puzzles per batch.
      progress: whether to show a progress bar on a terminal.
    """
    n = len(puzzles)
    size = min(batch_size, n)
    measure = jax.jit(partial(_measure, run.network, iterations))
    parts = []
    with jax.set_mesh(run.mesh), tqdm(total=n, unit=" puzzles", disable=not (progress and sys.stderr.isatty())) as bar:
        for start in range(0, n, size):
            rows = np.arange(start, start + size) % n  # fills the last batch, so that one program serves all
            batch = puzzles.take(rows)
            found = measure(run.params, batch.puzzles_Nx81, batch.solutions_Nx81)
            parts.append({name: np.asarray(a)[:, : n - start] for name, a in found.items()})
            bar.update(min(size, n - start))
    return Trajectories(**{name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]})


def _measure(
    network: Network, iterations: int, params: Params, puzzles_Bx81: jax.Array, solutions_Bx81: jax.Array
) -> dict[str, jax.Array]:
    """Returns the attributes of `Trajectories` for one batch."""
    model = network.merge(params)

    def step(carry: tuple[Any, jax.Array], _: None) -> tuple[tuple[Any, jax.Array], dict[str, jax.Array]]:
        (h, p), before_Bx81 = carry
        (new_h, new_p), logits = model.iterate((h, p))
        digits_Bx81 = filled(logits, puzzles_Bx81)
        is_wrong_Bx81 = digits_Bx81 != solutions_Bx81
        size_B = _rms(new_h)
        found = {
            "valid_TxN": is_valid(digits_Bx81),
            "changed_TxN": jnp.sum(digits_Bx81 != before_Bx81, axis=1),
            "wrong_TxN": jnp.sum(is_wrong_Bx81, axis=1),
            "confidence_TxN": jnp.mean(jnp.max(new_p, axis=-1), axis=1, where=is_wrong_Bx81),
            "size_TxN": size_B,
            "distance_TxN": _rms(new_h - h) / size_B,
            "angle_TxN": jnp.rad2deg(_angle(h, new_h)),
        }
        return ((new_h, new_p), digits_Bx81), found

    start = (model.start(puzzles_Bx81), jnp.asarray(puzzles_Bx81))
    found: dict[str, jax.Array] = jax.lax.scan(step, start, length=iterations)[1]
    return found


def _rms(x_BxLxD: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x_BxLxD), axis=(1, 2)))


def _angle(a_BxLxD: jax.Array, b_BxLxD: jax.Array) -> jax.Array:
    """Returns the angles (B,) in radians, precise for small ones, too."""
    units = [x / _rms(x)[:, None, None] for x in (a_BxLxD, b_BxLxD)]
    return 2 * jnp.arcsin(jnp.minimum(_rms(units[1] - units[0]) / 2, 1))


def summarise(trajectories: Trajectories) -> dict[str, Any]:
    """Returns the numbers of puzzles and means over them, by iteration.

    Returns:
      groups: the number of puzzles in each of `GROUPS`; iterations: a dict for each iteration with its number and, in
      puzzles, valid, newly_solved (valid for the first time), regained (valid again) and broken (no longer valid), so
      that valid = valid before + newly_solved + regained - broken; and for each group that has puzzles the means
      changed_cells, wrong_cells, wrong_confidence (over the puzzles with wrong cells; None if there are none), size,
      distance and angle, see `Trajectories`.
    """
    t, valid_TxN = trajectories, trajectories.valid_TxN
    before_TxN = np.concatenate([np.zeros_like(valid_TxN[:1]), valid_TxN[:-1]])
    is_first_TxN = np.arange(1, 1 + len(valid_TxN))[:, None] == t.first_N
    counts = {
        "valid": valid_TxN,
        "newly_solved": is_first_TxN,
        "regained": valid_TxN & ~before_TxN & ~is_first_TxN,
        "broken": before_TxN & ~valid_TxN,
    }
    members = {name: np.flatnonzero(t.groups_N == i) for i, name in enumerate(GROUPS)}
    rows = []
    for i in range(len(valid_TxN)):
        row: dict[str, Any] = {"iteration": 1 + i, **{name: int(is_so[i].sum()) for name, is_so in counts.items()}}
        row |= {name: _means(t, i, chosen) for name, chosen in members.items() if len(chosen)}
        rows.append(row)
    return {"groups": {name: len(chosen) for name, chosen in members.items()}, "iterations": rows}


def _means(t: Trajectories, i: int, chosen: np.ndarray) -> dict[str, float | None]:
    """Returns the means over a group in the iteration of index i."""
    confidence = t.confidence_TxN[i, chosen]
    confidence = confidence[~np.isnan(confidence)]
    return {
        "changed_cells": float(t.changed_TxN[i, chosen].mean()),
        "wrong_cells": float(t.wrong_TxN[i, chosen].mean()),
        "wrong_confidence": float(confidence.mean()) if len(confidence) else None,
        "size": float(t.size_TxN[i, chosen].mean()),
        "distance": float(t.distance_TxN[i, chosen].mean()),
        "angle": float(t.angle_TxN[i, chosen].mean()),
    }


# --- the reaction to a small change ---------------------------------------------------------------------


def radii_of_groups(
    run: LoadedRun, puzzles: Puzzles, trajectories: Trajectories, *, n_each: int
) -> list[dict[str, float | int | str]]:
    """Estimates spectral radii for the first puzzles of each group, when first valid and after the last iteration.

    Args:
      run: from `load_run`.
      puzzles: those of the trajectories.
      trajectories: from `follow`.
      n_each: at most so many puzzles of each group.

    Returns:
      For each state: group, puzzle (its index), state ("first valid" or "last"), iteration, and radius, error and
      growth, see `spectral_radii`.
    """
    last, first_N = len(trajectories.valid_TxN), trajectories.first_N
    states: list[dict[str, float | int | str]] = []
    for i, group in enumerate(GROUPS):
        for puzzle in np.flatnonzero(trajectories.groups_N == i)[:n_each].tolist():
            moments = {"first valid": int(first_N[puzzle]), "last": last}
            states += [
                {"group": group, "puzzle": puzzle, "state": name, "iteration": iteration}
                for name, iteration in moments.items()
                if iteration
            ]
    rows, after = (np.array([state[name] for state in states]) for name in ("puzzle", "iteration"))
    radii = spectral_radii(run, puzzles.puzzles_Nx81[rows], after)
    return [state | {name: float(a[i]) for name, a in radii.items()} for i, state in enumerate(states)]


def spectral_radii(run: LoadedRun, puzzles_Kx81: np.ndarray, after_K: np.ndarray) -> dict[str, np.ndarray]:
    """Estimates the spectral radius of the Jacobian of an iteration, a map from (h, p) to (h, p), at K states.

    At a fixed point, a radius above 1 means that small changes grow, and one below 1 that they die out. But nothing
    normalises h, so it may grow without end. The blocks see its direction only. Then a small change matters more and
    more if the radius is above `growth`, and less and less if it is below.

    Args:
      run: from `load_run`.
      puzzles_Kx81: digits, 0 for empty cells.
      after_K: the state of each puzzle is the one after so many iterations.

    Returns:
      radius and error (K,), see `spectral_radius`, and growth (K,), the factor by which the next iteration multiplies
      the root mean square of h.
    """

    @jax.jit
    def radii(params: Params, puzzles: jax.Array, after: jax.Array) -> dict[str, jax.Array]:
        model = run.network.merge(params)

        def go_on(i: jax.Array, grid: Any) -> Any:
            is_due = (i < after)[:, None, None]
            return jax.tree.map(lambda new, old: jnp.where(is_due, new, old), model.iterate(grid)[0], grid)

        grid = jax.lax.fori_loop(0, jnp.max(after), go_on, model.start(puzzles))
        radius, error = spectral_radius(lambda grid: model.iterate(grid)[0], grid, jax.random.key(0))
        return {"radius": radius, "error": error, "growth": _rms(model.iterate(grid)[0][0]) / _rms(grid[0])}

    with jax.set_mesh(run.mesh):
        found: dict[str, np.ndarray] = jax.device_get(
            radii(run.params, jnp.asarray(puzzles_Kx81), jnp.asarray(after_K))
        )
    return found


def spectral_radius(
    step: Callable[[Any], Any], state: Any, key: jax.Array, *, products: int = _PRODUCTS
) -> tuple[jax.Array, jax.Array]:
    """Estimates the largest absolute eigenvalue of the Jacobian of `step` at `state`, for each row by itself.

    Power iteration from a random vector: the mean growth of its norm in the second half of the products. A mean over
    many products converges for a pair of complex eigenvalues, too, where the growth itself oscillates (Gelfand's
    formula). The products are with the transpose, whose eigenvalues are the same, because the fast implementations
    within a network have gradients of their own, but no forward derivatives.

    Args:
      step: maps a pytree of arrays (K, ...) to one of the same shapes; no row affects another.
      state: where the Jacobian is taken.
      key: of the random vector.
      products: number of products, a multiple of 4.

    Returns:
      The radii (K,), and how far apart the estimates from the third and the last quarter of the products are (K,).
    """
    pull = jax.vjp(step, state)[1]
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(key, len(leaves))
    vector = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]

    def multiply(vector: Any, _: None) -> tuple[Any, jax.Array]:
        norm_K = jnp.sqrt(sum(jnp.sum(jnp.square(x), axis=range(1, x.ndim)) for x in jax.tree.leaves(vector)))
        # A Jacobian that maps the vector to 0 has no growth to measure: the radius is then 0.
        inverse_K = jnp.where(norm_K > 0, 1 / norm_K, 0)
        vector = jax.tree.map(lambda x: x * inverse_K.reshape(-1, *[1] * (x.ndim - 1)), vector)
        return pull(vector)[0], jnp.log(norm_K)

    # The first norm is that of the random vector.
    log_growth = jax.lax.scan(multiply, jax.tree.unflatten(structure, vector), length=products + 1)[1][1:]
    quarter = products // 4
    third_K, last_K = (jnp.mean(log_growth[i : i + quarter], axis=0) for i in (2 * quarter, 3 * quarter))
    return jnp.exp((third_K + last_K) / 2), jnp.abs(jnp.exp(third_K) - jnp.exp(last_K))
