"""A run whose prepared text is damaged while it trains."""

import numpy as np
import pytest

from psann_jax.data import loader, shard_file
from psann_jax.data.loader import load_text
from psann_jax.runs.training import train_run
from psann_jax.train.metrics import read_metrics
from psann_jax.train.workdir import CHECKPOINTS
from psann_jax.utils.errors import DataError
from tests.support.damage import flip_bit
from tests.support.tiny import tiny_config


def losses(workdir) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "train"}


def test_no_update_uses_damaged_data_and_the_work_is_saved(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, checkpoint__every=100, train__steps=12, data__num_workers=1)
    train_run(config, tmp_path / "whole")
    (path,) = (tmp_path / "cache").glob("shards-*/*.shard")
    content = path.read_bytes()
    monkeypatch.setattr(shard_file, "BLOCK", 1 << 10)  # so that other blocks stay usable
    # The sample of a text as short as this is all of it, so that the damage would be found before the first update.
    monkeypatch.setattr(loader, "unknown_word_warnings", lambda shards, tokenizer: ())
    path.unlink()
    load_text(config.data, progress=False)  # prepares it again
    flip_bit(path)  # of a training token
    with pytest.raises(DataError, match=rf"^{path}: is damaged or missing; start again, which prepares this part"):
        train_run(config, tmp_path / "run")
    done = losses(tmp_path / "run")
    (saved,) = (step.name for step in (tmp_path / "run" / CHECKPOINTS).iterdir() if step.name.startswith("step"))
    assert saved == f"step_{max(done, default=0)}"
    assert len(done) < 12
    monkeypatch.undo()
    assert train_run(config, tmp_path / "run")["steps"] == 12
    assert path.read_bytes() == content
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "run").keys() == whole.keys()
    np.testing.assert_array_equal(list(losses(tmp_path / "run").values()), list(whole.values()))
