"""Batches of puzzles: `load_puzzles` goes the whole way from the settings to arrays.

The training batch of a step is a pure function of the seed, the step and the number of steps, so that a run resumes
exactly from the step alone, on any number of processes.
"""

import itertools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from psann_jax.config.sudoku import BUCKETS, PuzzlesConfig
from psann_jax.data.cache import cache_root, get_or_make, key_of
from psann_jax.data.files import file_fingerprint
from psann_jax.data.sudoku.curriculum import active_buckets, phase_ends, phases
from psann_jax.data.sudoku.files import read_puzzles
from psann_jax.data.sudoku.generator import generate, grid_keys
from psann_jax.data.sudoku.puzzles import Puzzles, choose_validation, joined
from psann_jax.data.sudoku.symmetry import N_DRAWS, symmetry
from psann_jax.utils.errors import UserError

_FORMAT = 1  # raise it when the generator, the rating or the file changes
_FILE = "puzzles.npz"

Prepared = tuple[Puzzles, np.ndarray, np.ndarray]  # with the group and the grid key of each


def load_puzzles(config: PuzzlesConfig, progress: bool = True) -> "PuzzleData":
    """Reads or makes the puzzles and divides them; what an earlier run has done is used again.

    Processes that share a cache directory may call this at once: one works, the others wait.

    Args:
      config: the settings.
      progress: whether this process prints, to stderr.

    Raises:
      UserError: a file or the cache cannot be used, or a side has no puzzles.
    """
    root = cache_root(config.cache_dir)
    if not config.files:
        key = key_of("generated", config.counts, config.seed, config.extra_clues)
        puzzles, groups_N, keys_N = _prepared(root, key, progress, lambda: _made(config, progress))
    else:
        key, (puzzles, groups_N, keys_N) = _read(config.files, config, root, progress)
    if config.valid_files:
        valid_key, (valid, _, valid_keys_N) = _read(config.valid_files, config, root, progress)
        key = key_of(key, valid_key)
        train = puzzles.take(~np.isin(keys_N, valid_keys_N))
    else:
        key = key_of(key, config.valid_fraction, config.seed)
        train_rows, valid_rows = choose_validation(
            groups_N, keys_N, puzzles.buckets_N, config.valid_fraction, config.seed
        )
        train, valid = puzzles.take(train_rows), puzzles.take(valid_rows)
    left_out = len(puzzles) - len(train) - (0 if config.valid_files else len(valid))
    return PuzzleData(config, train, valid, key_of(_FORMAT, key), left_out)


def _made(config: PuzzlesConfig, progress: bool) -> tuple[Puzzles, np.ndarray]:
    return generate(config.counts, seed=config.seed, extra_clues=config.extra_clues, progress=progress)


def _read(files: tuple[str, ...], config: PuzzlesConfig, root: Path, progress: bool) -> tuple[str, Prepared]:
    """The puzzles of several files, in groups of the same grid, and a key of their content."""
    parts, keys = [], []
    for name in files:
        path = Path(name).expanduser()
        keys.append(key_of("file", file_fingerprint(path), config.ratings))

        def read(path: Path = path) -> tuple[Puzzles, None]:
            return read_puzzles(path, ratings=config.ratings, progress=progress), None

        parts.append(_prepared(root, keys[-1], progress, read))
    keys_N = np.concatenate([part[2] for part in parts])
    return key_of(keys), (joined([part[0] for part in parts]), keys_N, keys_N)


def _prepared(root: Path, key: str, progress: bool, make: Callable[[], tuple[Puzzles, np.ndarray | None]]) -> Prepared:
    """What `make` gives, from the cache if it is there."""

    def write(directory: Path) -> None:
        puzzles, groups_N = make()
        keys_N = grid_keys(puzzles.solutions_Nx81)
        groups_N = keys_N if groups_N is None else groups_N
        np.savez(directory / _FILE, **vars(puzzles), groups_N=groups_N, keys_N=keys_N)

    path = get_or_make(root, f"sudoku-{key_of(_FORMAT, key)}", write, progress, _find_damage)
    return _load(path)


def _load(path: Path) -> Prepared:
    with np.load(path / _FILE) as arrays:
        puzzles = Puzzles(arrays["puzzles_Nx81"], arrays["solutions_Nx81"], arrays["ratings_N"])
        return puzzles, arrays["groups_N"], arrays["keys_N"]


def _find_damage(path: Path) -> str | None:
    """What is wrong with the puzzles in a directory; the archive holds a checksum of every array."""
    try:
        _load(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        return " ".join(str(e).split()) or type(e).__name__
    return None


class PuzzleData:
    """Training and validation batches of puzzles.

    A batch is a dict of arrays: puzzles and solutions, uint8 (B, 81), and the bucket of each, int32 (B,). With several
    processes each gets its rows of it, process p of n the rows [p * B / n, (p + 1) * B / n).

    Attributes:
      train, valid: the puzzles. Validation puzzles stand under one fixed random symmetry each, if `augment` is on:
        collections in normal form show digits that nobody has solved for.
      fingerprint: changes with the puzzles and their division.
      left_out: puzzles whose grid is among the validation grids; they are not trained on.
    """

    def __init__(self, config: PuzzlesConfig, train: Puzzles, valid: Puzzles, fingerprint: str, left_out: int = 0):
        """See `load_puzzles`."""
        self.fingerprint, self.left_out, self._config = fingerprint, left_out, config
        self.train, self.valid = train, valid
        self._buckets_N = train.buckets_N.astype(np.int32)
        self._rows = {active: np.flatnonzero(np.isin(self._buckets_N, active)) for active in phases(config.curriculum)}
        for active, rows in self._rows.items():
            if not len(rows):
                names = ", ".join(BUCKETS[bucket] for bucket in active)
                raise UserError(
                    f"data.curriculum: {config.curriculum} has a phase of ratings {names}, but no puzzle for "
                    "training has such a rating"
                )
        if not (valid.buckets_N >= 0).any():
            raise UserError("data.valid_fraction: leaves no puzzle for validation; there are too few grids")
        if config.augment:
            draws = np.random.default_rng([config.seed, 1]).random((len(valid), N_DRAWS))
            element = symmetry(draws)
            self.valid = Puzzles(
                element.apply(valid.puzzles_Nx81), element.apply(valid.solutions_Nx81), valid.ratings_N
            )

    def train_batch(
        self, *, seed: int, batch_size: int, step: int, steps: int, process_index: int = 0, process_count: int = 1
    ) -> dict[str, np.ndarray]:
        """The batch of a step: puzzles drawn with replacement, all those of the phase's buckets alike.

        Args:
          seed: of the draws.
          batch_size: B, rows over all processes.
          step: of the training.
          steps: of the whole training; the phases are shares of them.
          process_index: p.
          process_count: n.

        Raises:
          UserError: batch_size cannot be divided over the processes.
        """
        share = _share(batch_size, process_index, process_count)
        rows = self._rows[active_buckets(self._config, step, steps)]
        rng = np.random.default_rng([seed, step])
        chosen = rows[rng.integers(len(rows), size=batch_size)][share]
        grids = self.train.puzzles_Nx81[chosen], self.train.solutions_Nx81[chosen]
        if self._config.augment:
            element = symmetry(rng.random((batch_size, N_DRAWS))[share])
            grids = element.apply(grids[0]), element.apply(grids[1])
        return {"puzzles": grids[0], "solutions": grids[1], "buckets": self._buckets_N[chosen]}

    def train_batches(
        self,
        *,
        seed: int,
        batch_size: int,
        steps: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[dict[str, np.ndarray]]:
        """The batches of start_step, start_step + 1, ... without end; see `train_batch`."""
        for step in itertools.count(start_step):
            yield self.train_batch(
                seed=seed,
                batch_size=batch_size,
                step=step,
                steps=steps,
                process_index=process_index,
                process_count=process_count,
            )

    def valid_batches(
        self, *, batch_size: int, max_puzzles: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """The validation puzzles of all buckets in order, the same number of batches in every process.

        The last batch is filled up with full grids, which have nothing to solve, of bucket -1.

        Args:
          batch_size: B, rows over all processes.
          max_puzzles: only the first so many; 0: all.
          process_index: p.
          process_count: n.

        Raises:
          UserError: batch_size cannot be divided over the processes.
        """
        share = _share(batch_size, process_index, process_count)
        buckets_N = self.valid.buckets_N
        used = np.flatnonzero(buckets_N >= 0)[: max_puzzles or None]
        for first in range(0, len(used), batch_size):
            index = np.arange(first, first + batch_size)[share]
            real, rows = index < len(used), used[np.minimum(index, len(used) - 1)]
            solutions = self.valid.solutions_Nx81[rows]
            yield {
                "puzzles": np.where(real[:, None], self.valid.puzzles_Nx81[rows], solutions),
                "solutions": solutions,
                "buckets": np.where(real, buckets_N[rows], -1).astype(np.int32),
            }

    def phases(self, steps: int) -> dict[int, str]:
        """The step with which each phase of a training of so many steps begins, and its ratings."""
        starts = (0, *phase_ends(self._config, steps)[:-1])
        names = (", ".join(BUCKETS[bucket] for bucket in active) for active in phases(self._config.curriculum))
        return dict(zip(starts, names, strict=True))

    def describe(self, steps: int) -> str:
        """What the puzzles are and what is trained on when, in a few lines."""
        origin = ", ".join(self._config.files) or "generated"
        measure = "as in the files" if self._config.files and self._config.ratings == "file" else "guesses, own measure"
        note = f"; {self.left_out:,} left out for having the grid of a validation puzzle" if self.left_out else ""
        course = (f"from step {start:,}: {ratings}" for start, ratings in self.phases(steps).items())
        return "\n".join(
            (
                f"puzzles     {origin}; ratings {measure}",
                f"training    {self.train.describe()}{note}",
                f"validation  {self.valid.describe()}",
                f"curriculum  {self._config.curriculum}; {'; '.join(course)}",
            )
        )


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a batch that belong to a process."""
    if batch_size % process_count:
        raise UserError(
            f"train.batch_tokens: makes batches of {batch_size} puzzles, which cannot be divided over "
            f"{process_count} processes"
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)
