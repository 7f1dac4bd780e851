"""Batches of puzzles and the curriculum."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config.checks import ConfigError
from psann_jax.config.sudoku import PuzzlesConfig
from psann_jax.data.batches import BatchShard
from psann_jax.data.sudoku import loader
from psann_jax.data.sudoku.curriculum import active_buckets, phase_ends
from psann_jax.data.sudoku.generator import grid_keys
from psann_jax.data.sudoku.loader import PuzzleData, load_puzzles
from psann_jax.data.sudoku.puzzles import Puzzles
from psann_jax.data.sudoku.rules import grid_text, has_clues_of, is_solved
from psann_jax.utils.errors import UserError
from tests.support.damage import flip_bit, replace_content

COUNTS = (120, 20, 10, 2, 0)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = PuzzlesConfig(
        counts=COUNTS, valid_fraction=0.1, curriculum="mixed", cache_dir=str(tmp_path_factory.mktemp("cache"))
    )
    config.check("puzzles")
    return config


@pytest.fixture(scope="module")
def data(config):
    return load_puzzles(config, progress=False)


def test_a_second_load_uses_the_cache(config, data):
    again = load_puzzles(config, progress=False)
    assert again.fingerprint == data.fingerprint
    assert (again.train.puzzles_Nx81 == data.train.puzzles_Nx81).all()
    assert len(data.train) + len(data.valid) == sum(COUNTS)
    assert load_puzzles(replace(config, valid_fraction=0.2), progress=False).fingerprint != data.fingerprint


def test_no_validation_grid_is_trained_on(data):
    assert not set(grid_keys(data.train.solutions_Nx81)) & set(grid_keys(data.valid.solutions_Nx81))
    assert is_solved(data.valid.solutions_Nx81).all()
    assert has_clues_of(data.valid.solutions_Nx81, data.valid.puzzles_Nx81).all()


def test_damaged_puzzles_are_rebuilt(tmp_path, config, capsys):
    config = replace(config, counts=(20, 0, 0, 0, 0), cache_dir=str(tmp_path))
    first = load_puzzles(config, progress=False)
    (stored,) = tmp_path.glob("sudoku-*/puzzles.npz")
    flip_bit(stored, 500)
    assert (load_puzzles(config, progress=False).train.puzzles_Nx81 == first.train.puzzles_Nx81).all()
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["empty", "encrypted", "unknown compression"])
def test_damage_that_the_library_reports_in_other_ways_is_found(tmp_path, config, capsys, damage):
    config = replace(config, counts=(20, 0, 0, 0, 0), cache_dir=str(tmp_path))
    first = load_puzzles(config, progress=False)
    (stored,) = tmp_path.glob("sudoku-*/puzzles.npz")
    content = bytearray(stored.read_bytes())
    entry = content.index(b"PK\x01\x02")  # of the first array in the directory at the end
    if damage == "empty":
        content.clear()
    elif damage == "encrypted":
        content[entry + 8] |= 1
    else:
        content[entry + 10] = 99
    replace_content(stored, bytes(content))
    assert (load_puzzles(config, progress=False).train.puzzles_Nx81 == first.train.puzzles_Nx81).all()
    assert "damaged" in capsys.readouterr().err


def batch_of(data, step, **options):
    return data.train_batch(**{"seed": 5, "batch_size": 8, "steps": 100, "step": step, **options})


def test_a_batch_is_a_function_of_seed_and_step(data):
    batch = batch_of(data, 7)
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
        "puzzles": ((8, 81), np.uint8),
        "solutions": ((8, 81), np.uint8),
        "buckets": ((8,), np.int32),
    }
    assert is_solved(batch["solutions"]).all()
    assert has_clues_of(batch["solutions"], batch["puzzles"]).all()
    resumed = next(iter(data.train_batches(seed=5, batch_size=8, steps=100, start_step=7)))
    for other, same in [(resumed, True), (batch_of(data, 8), False), (batch_of(data, 7, seed=6), False)]:
        assert (other["puzzles"] == batch["puzzles"]).all() == same


def test_global_batches_are_the_same_on_any_number_of_processes(data):
    whole = batch_of(data, 3)
    parts = [batch_of(data, 3, shard=BatchShard((p,), 4)) for p in range(4)]
    for name, rows in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), rows)
    valid = list(data.valid_batches(batch_size=6))
    halves = [list(data.valid_batches(batch_size=6, shard=BatchShard((p,), 2))) for p in range(2)]
    for batch, first, second in zip(valid, *halves, strict=True):
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), rows)
    with pytest.raises(UserError, match="makes batches of 8 rows, which cannot be divided into 3 equal parts"):
        batch_of(data, 3, shard=BatchShard((0,), 3))


def test_augmented_puzzles_are_new_and_others_are_not(config, data):
    """Augmented, hardly any puzzle appears twice; otherwise, each is one of the training puzzles."""
    known = {grid_text(p) for p in data.train.puzzles_Nx81}
    plain = PuzzleData(replace(config, augment=False), data.train, data.valid, "")
    seen = {name: set() for name in ("augmented", "plain")}
    for step in range(40):
        for name, source in (("augmented", data), ("plain", plain)):
            seen[name] |= {grid_text(p) for p in batch_of(source, step)["puzzles"]}
    assert len(seen["augmented"]) == 320
    assert not seen["augmented"] & known
    assert seen["plain"] <= known


def test_validation_batches_are_in_order_with_padding(data):
    n = len(data.valid)
    rows = data.valid_rows()
    assert sorted(rows) == list(range(n))
    batches = list(data.valid_batches(batch_size=n - 1))
    assert len(batches) == 2
    puzzles = np.concatenate([b["puzzles"] for b in batches])
    assert (puzzles[:n] == data.valid.puzzles_Nx81[rows]).all()
    assert (puzzles[n:] > 0).all()
    buckets = np.concatenate([b["buckets"] for b in batches])
    assert buckets.tolist() == data.valid.buckets_N[rows].tolist() + [-1] * (n - 2)
    assert [b["buckets"].max() for b in data.valid_batches(batch_size=4, max_puzzles=2)] == [buckets[:2].max()]


def test_puzzles_without_an_empty_cell_that_an_earlier_version_prepared_are_refused(tmp_path, data, monkeypatch):
    path = tmp_path / "train.csv"
    path.write_text("question,answer,rating\n")
    puzzles_Nx81 = data.train.puzzles_Nx81[:3].copy()
    puzzles_Nx81[1] = data.train.solutions_Nx81[1]
    prepared = Puzzles(puzzles_Nx81, data.train.solutions_Nx81[:3], np.zeros(3))
    config = PuzzlesConfig(files=(str(path),), curriculum="mixed", cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(loader, "read_puzzles", lambda *_, **__: prepared)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"^{path}: puzzle 2: question: has no empty cell$"):
            load_puzzles(config, progress=False)
        monkeypatch.undo()  # it is in the cache


def test_files_are_split_by_grid(tmp_path, data):
    """Puzzles with the same grid stay together, and grids of the validation file are not trained on."""
    pairs = np.stack([data.train.puzzles_Nx81, data.train.solutions_Nx81], axis=1)
    texts = [",".join(map(grid_text, pair)) for pair in pairs]

    def write(name, *rows):
        lines = [f"{texts[i]},{rating}" for i, rating in rows]
        (tmp_path / name).write_text("\n".join(["question,answer,rating", *lines]))
        return str(tmp_path / name)

    train = write("train.csv", *((i, 0) for i in range(10)), (4, 2.5), (4, -1))
    valid = write("valid.csv", (3, 0), (50, 60), (51, 50.5))
    config = PuzzlesConfig(files=(train,), valid_files=(valid,), curriculum="mixed", cache_dir=str(tmp_path / "cache"))
    config.check("puzzles")
    both = load_puzzles(config, progress=False)
    assert (len(both.train), len(both.valid), both.n_excluded) == (11, 3, 1)
    text = both.describe(100)
    assert (
        "11 puzzles, by rating 0: 9, 1-2: 0, 3-10: 0, 11-50: 0, 51+: 0, in no bucket and not used: 2; 1 excluded"
        in text
    )
    assert sum((b["buckets"] >= 0).sum() for b in both.valid_batches(batch_size=2)) == 2
    rated = load_puzzles(replace(config, ratings="guesses"), progress=False)
    assert (rated.train.ratings_N == data.train.ratings_N[[0, 1, 2, *range(4, 10), 4, 4]]).all()
    split = load_puzzles(replace(config, valid_files=(), valid_fraction=0.5), progress=False)
    assert len(split.train) + len(split.valid) == 12
    assert not set(grid_keys(split.train.solutions_Nx81)) & set(grid_keys(split.valid.solutions_Nx81))
    seeded = load_puzzles(replace(config, seed=5), progress=False)  # the validation puzzles are transformed otherwise
    assert (seeded.valid.puzzles_Nx81 != both.valid.puzzles_Nx81).any()
    assert both.fingerprint == seeded.fingerprint
    for files, message in (
        ((write("unrated.csv", (0, 2.5)),), "no puzzle has a rating among 0, 1-2, 3-10, 11-50, 51\\+$"),
        ((train,), "no puzzle is left for training: all 12 have the grid of a validation puzzle$"),
        (("http://x/v.csv",), "'http://x/v.csv'"),
    ):
        with pytest.raises(UserError, match=rf"^data\.valid_files: {message}"):
            load_puzzles(replace(config, valid_files=files), progress=False)


# --- the curriculum ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        (70_000, (14_000, 28_000, 42_000, 70_000)),
        (50_000, (10_000, 20_000, 30_000, 50_000)),
        (140_000, (28_000, 56_000, 84_000, 140_000)),
        (25_000, (5_000, 10_000, 15_000, 25_000)),
    ],
)
def test_phases_match_the_study(steps, ends):
    config = PuzzlesConfig()
    assert phase_ends(config, steps) == ends
    expected = {"reverse": ["4", "34", "1234", "01234"], "regular": ["01", "012", "0123", "01234"]}
    for curriculum, buckets in expected.items():
        config = PuzzlesConfig(curriculum=curriculum)
        for start, end, names in zip((0, *ends), ends, buckets, strict=False):
            for step in (start, end - 1):
                assert "".join(map(str, active_buckets(config, step, steps))) == names
    assert active_buckets(PuzzlesConfig(curriculum="mixed"), 0, steps) == (0, 1, 2, 3, 4)
    assert active_buckets(PuzzlesConfig(), 2 * steps, steps) == (0, 1, 2, 3, 4)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(0, 400))
def test_batches_have_only_ratings_of_their_phase(steps, step):
    ratings = np.repeat([0.0, 1, 5, 20, 60, -1], 3)
    grids = np.repeat(np.arange(18, dtype=np.uint8)[:, None], 81, axis=1)
    puzzles = Puzzles(grids, grids, ratings)
    config = PuzzlesConfig(augment=False)
    data = PuzzleData(config, puzzles, puzzles, "")
    batch = data.train_batch(seed=0, batch_size=64, step=step, steps=steps)
    assert set(batch["puzzles"][:, 0] // 3) == set(batch["buckets"]) == set(active_buckets(config, step, steps))


def test_a_phase_without_puzzles_is_refused(config, data):
    with pytest.raises(
        UserError, match=r"data\.curriculum: reverse has a phase of ratings 51\+, but no training puzzle"
    ):
        PuzzleData(replace(config, curriculum="reverse"), data.train, data.valid, "")
    phases = (0.0, 0.4, 0.4, 0.2)  # no update draws from the first
    shortened = PuzzleData(replace(config, curriculum="reverse", phases=phases), data.train, data.valid, "")
    assert shortened.train_batch(seed=1, batch_size=4, step=0, steps=10)["buckets"].tolist() == [3] * 4


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("puzzles.counts", {"counts": (0, 0, 0, 0, 0)}),
        ("puzzles.counts", {"counts": (1, -1, 0, 0, 0)}),
        ("puzzles.counts", {"files": ("p.csv",), "counts": (1, 0, 0, 0, 0)}),
        ("puzzles.ratings", {"ratings": "guesses"}),
        ("puzzles.valid_fraction", {"valid_fraction": 1.0}),
        ("puzzles.phases", {"phases": (0.5, 0.5)}),
        ("puzzles.phases", {"curriculum": "mixed", "phases": (0.1, 0.1, 0.1, 0.7)}),
    ],
)
def test_settings_that_cannot_be_used(field, options):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        PuzzlesConfig(**options).check("puzzles")


def test_batches_are_endless(data):
    steps = data.train_batches(seed=0, batch_size=2, steps=3)
    assert len(list(itertools.islice(steps, 10))) == 10
