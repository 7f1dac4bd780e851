"""Batches of puzzles: `load_puzzles` goes from the settings to `PuzzleData`.

The training batch of a step is a pure function of the seed, the step and the number of steps. A run therefore resumes
exactly from the step alone, on any number of processes.
"""

import itertools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from psann_jax.config.sudoku import BUCKETS, PuzzlesConfig
from psann_jax.data.batches import WHOLE_BATCH, BatchShard
from psann_jax.data.cache import cache_root, get_or_make, key_of
from psann_jax.data.content import file_contents
from psann_jax.data.downloads import local_file
from psann_jax.data.files import refuse_pointer
from psann_jax.data.sudoku.curriculum import active_buckets, phase_ends, phases
from psann_jax.data.sudoku.files import read_puzzles
from psann_jax.data.sudoku.generator import generate, grid_keys
from psann_jax.data.sudoku.puzzles import Puzzles, concatenate, split_by_grid, stratified_order
from psann_jax.data.sudoku.symmetry import N_DRAWS, symmetry
from psann_jax.utils.errors import UserError

_FORMAT = 1  # increase it when the generator, the rating or the file format changes
_FILE = "puzzles.npz"


def load_puzzles(config: PuzzlesConfig, progress: bool = True) -> "PuzzleData":
    """Reads or generates the puzzles, or finds them prepared in the cache; splits them.

    Processes that share a cache directory may call this at the same time: one does the work, the others wait.

    Args:
      config: the `data` section.
      progress: show progress on stderr.

    Raises:
      UserError: a file or the cache cannot be used, or there are too few puzzles.
    """
    root = cache_root(config.cache_dir)
    if config.files:
        key, prepared = _read("files", config, root, progress)
    else:
        key, prepared = _generated(config, root, progress)
    puzzles = prepared.puzzles
    if config.valid_files:
        valid_key, fixed = _read("valid_files", config, root, progress)
        key = key_of(key, valid_key)
        train, valid = puzzles.take(~np.isin(prepared.keys_N, fixed.keys_N)), fixed.puzzles
        n_excluded = len(puzzles) - len(train)
    else:
        key = key_of(key, config.valid_fraction, config.seed)
        train_rows, valid_rows = split_by_grid(
            prepared.groups_N, prepared.keys_N, puzzles.buckets_N, config.valid_fraction, config.seed
        )
        train, valid = puzzles.take(train_rows), puzzles.take(valid_rows)
        n_excluded = len(puzzles) - len(train) - len(valid)
    return PuzzleData(config, train, valid, key_of(_FORMAT, key), n_excluded)


class _Prepared(NamedTuple):
    """Puzzles; for each, a number that is the same if they must not be split, and the `grid_keys` of its solution."""

    puzzles: Puzzles
    groups_N: np.ndarray
    keys_N: np.ndarray


def _generated(config: PuzzlesConfig, root: Path, progress: bool) -> tuple[str, _Prepared]:
    """Returns a key of the settings and the puzzles generated from them, grouped by lineage."""
    key = key_of("generated", config.counts, config.seed, config.extra_clues)

    def make() -> tuple[Puzzles, np.ndarray]:
        return generate(config.counts, seed=config.seed, extra_clues=config.extra_clues, progress=progress)

    return key, _cached(root, key, progress, make)


def _read(
    setting: Literal["files", "valid_files"], config: PuzzlesConfig, root: Path, progress: bool
) -> tuple[str, _Prepared]:
    """Returns a key of the content of the files of a setting and their puzzles, grouped by grid."""
    parts, keys = [], []
    for name in getattr(config, setting):
        path = local_file(name, root, f"data.{setting}")
        refuse_pointer(path)
        (content,) = file_contents([path], root, progress)
        keys.append(key_of("file", content.sha256, config.ratings))

        def make(path: Path = path) -> tuple[Puzzles, None]:
            return read_puzzles(path, ratings=config.ratings, progress=progress), None

        parts.append(_cached(root, keys[-1], progress, make))
        is_full_N = np.all(parts[-1].puzzles.puzzles_Nx81 > 0, axis=1)
        if is_full_N.any():  # earlier versions prepared such files
            raise UserError(f"{path}: puzzle {int(np.argmax(is_full_N)) + 1}: question: has no empty cell")
    keys_N = np.concatenate([part.keys_N for part in parts])
    return key_of(keys), _Prepared(concatenate([part.puzzles for part in parts]), keys_N, keys_N)


def _cached(root: Path, key: str, progress: bool, make: Callable[[], tuple[Puzzles, np.ndarray | None]]) -> _Prepared:
    """Returns puzzles from the cache; if they are not there, `make` returns them and their groups (None: by grid)."""

    def write(directory: Path) -> None:
        puzzles, groups_N = make()
        keys_N = grid_keys(puzzles.solutions_Nx81)
        groups_N = keys_N if groups_N is None else groups_N
        np.savez(directory / _FILE, **vars(puzzles), groups_N=groups_N, keys_N=keys_N)

    return _open(get_or_make(root, f"sudoku-{key_of(_FORMAT, key)}", write, progress, _find_damage))


def _open(path: Path) -> _Prepared:
    with np.load(path / _FILE) as arrays:
        puzzles = Puzzles(arrays["puzzles_Nx81"], arrays["solutions_Nx81"], arrays["ratings_N"])
        return _Prepared(puzzles, arrays["groups_N"], arrays["keys_N"])


def _find_damage(path: Path) -> str | None:
    """Returns what is wrong with the puzzles in a directory; the archive has a checksum of every array."""
    try:
        _open(path)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as e:
        return " ".join(str(e).split()) or type(e).__name__
    return None


class PuzzleData:
    """Training and validation batches of puzzles.

    A batch is a dict of arrays: puzzles and solutions, uint8 (B, 81), and the bucket of each puzzle, int32 (B,). With n
    processes, process p gets the rows [p * B / n, (p + 1) * B / n).

    Attributes:
      train, valid: the puzzles. If `augment` is on, each validation puzzle is transformed by one fixed random symmetry,
        because the digits of puzzles in a normal form would reveal parts of the solution.
      fingerprint: a hash that changes with the puzzles and their split.
      n_excluded: number of puzzles that are not used for training because their grid is among the validation grids.
    """

    def __init__(self, config: PuzzlesConfig, train: Puzzles, valid: Puzzles, fingerprint: str, n_excluded: int = 0):
        """Checks that every phase has puzzles; `load_puzzles` does everything from the settings on.

        Args:
          config: the `data` section.
          train: training puzzles.
          valid: validation puzzles.
          fingerprint: see the attributes.
          n_excluded: see the attributes.

        Raises:
          UserError: a phase of the curriculum or the validation has no puzzles.
        """
        self.fingerprint, self.n_excluded, self._config = fingerprint, n_excluded, config
        self.train, self.valid = train, valid
        self._buckets_N = train.buckets_N.astype(np.int32)
        self._rows = {active: np.flatnonzero(np.isin(self._buckets_N, active)) for active in phases(config.curriculum)}
        if not len(train) and n_excluded:
            raise UserError(
                f"data.valid_files: no puzzle is left for training: all {n_excluded:,} have the grid of a validation "
                "puzzle"
            )
        fractions = (1.0,) if config.curriculum == "mixed" else config.phases
        for (active, rows), fraction in zip(self._rows.items(), fractions, strict=True):
            if fraction and not len(rows):
                names = ", ".join(BUCKETS[bucket] for bucket in active)
                raise UserError(
                    f"data.curriculum: {config.curriculum} has a phase of ratings {names}, but no training puzzle has "
                    "such a rating"
                )
        if not (valid.buckets_N >= 0).any():
            if config.valid_files:
                raise UserError(f"data.valid_files: no puzzle has a rating among {', '.join(BUCKETS)}")
            raise UserError("data.valid_fraction: leaves no puzzle for validation; there are too few grids")
        if config.augment:
            draws = np.random.default_rng([config.seed, 1]).random((len(valid), N_DRAWS))
            element = symmetry(draws)
            self.valid = Puzzles(
                element.apply(valid.puzzles_Nx81), element.apply(valid.solutions_Nx81), valid.ratings_N
            )

    def train_batches(
        self,
        *,
        seed: int,
        batch_size: int,
        steps: int,
        start_step: int = 0,
        shard: BatchShard = WHOLE_BATCH,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Returns the endless batches of start_step, start_step + 1, ...

        A batch is drawn with replacement and with equal probability from the puzzles in the buckets of its phase.

        Args:
          seed: seed of the draws.
          batch_size: B, rows over all processes.
          steps: number of steps of the whole training, which the phases divide.
          start_step: step of the first batch.
          shard: the rows to return.

        Raises:
          UserError: batch_size cannot be divided over the processes.
        """
        own = shard.rows(batch_size)
        return (self._train_batch(seed, batch_size, step, steps, own) for step in itertools.count(start_step))

    def train_batch(
        self, *, seed: int, batch_size: int, step: int, steps: int, shard: BatchShard = WHOLE_BATCH
    ) -> dict[str, np.ndarray]:
        """Returns the batch of one step, the same as `train_batches` yields."""
        return self._train_batch(seed, batch_size, step, steps, shard.rows(batch_size))

    def valid_batches(
        self, *, batch_size: int, max_puzzles: int = 0, shard: BatchShard = WHOLE_BATCH
    ) -> Iterator[dict[str, np.ndarray]]:
        """Returns the batches of the validation puzzles, the same number of batches in every process.

        They are in the order of `valid_rows`. The last batch is filled up with solved grids, of bucket -1.

        Args:
          batch_size: B, rows over all processes.
          max_puzzles: use only so many puzzles; 0: all.
          shard: the rows to return.

        Raises:
          UserError: batch_size cannot be divided over the processes.
        """
        own = shard.rows(batch_size)
        used = self.valid_rows(max_puzzles)
        starts = range(0, len(used), batch_size)
        return (self._valid_batch(used, np.arange(start, start + batch_size)[own]) for start in starts)

    def valid_rows(self, max_puzzles: int = 0) -> np.ndarray:
        """Returns the rows of the validation puzzles that are used: some of every bucket, in proportion.

        Puzzles outside all buckets are skipped.

        Args:
          max_puzzles: number of rows; 0: all.
        """
        rows = np.flatnonzero(self.valid.buckets_N >= 0)
        return rows[stratified_order(self.valid.buckets_N[rows], self._config.seed)][: max_puzzles or None]

    def phases(self, steps: int) -> dict[int, str]:
        """Returns the first step of each phase of a training of `steps` steps, with the ratings of the phase."""
        starts = (0, *phase_ends(self._config, steps)[:-1])
        names = (", ".join(BUCKETS[bucket] for bucket in active) for active in phases(self._config.curriculum))
        return dict(zip(starts, names, strict=True))

    def describe(self, steps: int) -> str:
        """Returns a summary of the puzzles, their split and the curriculum, one ``name  fact`` per line."""
        origin = ", ".join(self._config.files) or "generated"
        from_file = self._config.files and self._config.ratings == "file"
        measure = "as in the files" if from_file else "number of guesses of this project's solver"
        note = f"; {self.n_excluded:,} excluded for having the grid of a validation puzzle" if self.n_excluded else ""
        course = (f"from step {start:,}: {ratings}" for start, ratings in self.phases(steps).items())
        return "\n".join(
            (
                f"puzzles     {origin}; ratings {measure}",
                f"training    {self.train.describe()}{note}",
                f"validation  {self.valid.describe()}",
                f"curriculum  {self._config.curriculum}; {'; '.join(course)}",
            )
        )

    def _train_batch(self, seed: int, batch_size: int, step: int, steps: int, own: np.ndarray) -> dict[str, np.ndarray]:
        rows = self._rows[active_buckets(self._config, step, steps)]
        rng = np.random.default_rng([seed, step])
        chosen = rows[rng.integers(len(rows), size=batch_size)][own]
        puzzles, solutions = self.train.puzzles_Nx81[chosen], self.train.solutions_Nx81[chosen]
        if self._config.augment:
            element = symmetry(rng.random((batch_size, N_DRAWS))[own])
            puzzles, solutions = element.apply(puzzles), element.apply(solutions)
        return {"puzzles": puzzles, "solutions": solutions, "buckets": self._buckets_N[chosen]}

    def _valid_batch(self, used: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the puzzles used[index]; indices beyond the end are padding."""
        is_real, rows = index < len(used), used[np.minimum(index, len(used) - 1)]
        solutions = self.valid.solutions_Nx81[rows]
        return {
            "puzzles": np.where(is_real[:, None], self.valid.puzzles_Nx81[rows], solutions),
            "solutions": solutions,
            "buckets": np.where(is_real, self.valid.buckets_N[rows], -1).astype(np.int32),
        }
