"""Runs of earlier versions continue on the text that these versions prepared."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from psann_jax.data.earlier_text import is_of_earlier_version, load_earlier_text
from psann_jax.data.loader import load_text
from psann_jax.data.shards import Shard
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.runs import training
from psann_jax.runs.evaluate import evaluate, validation_text
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.training import train_run
from psann_jax.train.loop import StopSignals
from psann_jax.train.metrics import read_metrics
from psann_jax.utils.checksums import file_crc32
from psann_jax.utils.errors import UserError
from tests.support.damage import flip_bit
from tests.support.tiny import tiny_config, write_text

FINGERPRINT = "0123456789abcdef0123"


def write_earlier(cache: Path, checksums: bool = True) -> Path:
    """Writes a prepared text as version 0.1 did, with another split than today's."""
    directory = cache / f"shards-{FINGERPRINT}"
    directory.mkdir(parents=True)
    lines = (cache.parent / "text.txt").read_text().splitlines()
    counts = {"source_documents": [len(lines) - 30]}
    for name, texts in (("valid", lines[:30]), ("train", lines[30:])):
        documents = [[1, *byte_tokenizer().encode(text), 2] for text in texts]
        (directory / f"{name}.tokens").write_bytes(np.concatenate(documents).astype(np.uint16).tobytes())
        offsets = np.cumsum([0, *map(len, documents)])
        np.save(directory / f"{name}.offsets.npy", offsets)
        text_bytes = sum(len(text.encode()) for text in texts)
        counts[name] = {
            "dtype": "uint16",
            "tokens": int(offsets[-1]),
            "documents": len(texts),
            "text_bytes": text_bytes,
        }
    if checksums:
        crc32 = {path.name: file_crc32(path) for path in directory.iterdir()}
        counts["crc32"] = crc32 | {"counts.json": zlib.crc32(json.dumps(counts).encode())}
    (directory / "counts.json").write_text(json.dumps(counts))
    return directory


def rows(workdir) -> list[dict]:
    found = read_metrics(workdir / "metrics.jsonl")
    return [{name: row.get(name) for name in ("step", "kind", "loss", "bits_per_byte")} for row in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that version 0.1 stopped after 4 of 8 updates, and one that it has completed."""
    folder = tmp_path_factory.mktemp("earlier")
    config = tiny_config(folder, model__dropout=0.0)
    write_earlier(folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training,
            "_earlier_text",
            lambda config, workdir, saved: load_earlier_text(config.data, FINGERPRINT, byte_tokenizer(), False),
        )
        train_run(config, folder / "whole")
        patch.setattr(StopSignals, "should_stop", lambda self, step: step == 4)
        train_run(config, folder / "part")
    return folder


def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder / "part", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_a_run_continues_on_its_text(folder, tmp_path):
    workdir = copy(folder, tmp_path)
    train_run(tiny_config(folder, model__dropout=0.0), workdir)
    assert rows(workdir)[-1] == rows(folder / "whole")[-1]
    losses = {row["step"]: row["loss"] for row in rows(folder / "whole") if row["kind"] == "train"}
    assert {row["step"]: row["loss"] for row in rows(workdir) if row["kind"] == "train"} == losses
    run = load_text_run(workdir)
    assert run.data == FINGERPRINT
    loss = evaluate(run, validation_text(run)).results["loss"]
    np.testing.assert_allclose(loss, rows(workdir)[-1]["loss"], rtol=1e-6)


def test_another_text_is_refused(folder, tmp_path):
    write_text(tmp_path / "text.txt", seed=7)
    config = tiny_config(tmp_path, model__dropout=0.0, data__cache_dir=str(folder / "cache"))
    expected = rf"holds another run: data\.sources is \('{folder}/text\.txt',\) there and .* here; choose another"
    with pytest.raises(UserError, match=expected):
        train_run(config, copy(folder, tmp_path))


def test_a_new_run_prepares_the_text_anew(folder, tmp_path):
    train_run(tiny_config(folder, model__dropout=0.0, train__steps=2), tmp_path / "run")
    assert not is_of_earlier_version(load_text_run(tmp_path / "run").data)


def test_text_that_is_gone_is_a_user_error(folder, tmp_path):
    config = tiny_config(folder, model__dropout=0.0, data__cache_dir=str(tmp_path / "cache"))
    expected = rf"^{tmp_path}/cache/shards-{FINGERPRINT}: the run was started by an earlier version, .*; restore this"
    with pytest.raises(UserError, match=expected) as error:
        train_run(config, copy(folder, tmp_path))
    assert "\n" not in str(error.value)
    assert list(tmp_path.glob("cache/shards-*")) == [], "nothing is prepared in vain"


@pytest.mark.parametrize("name", ["train.tokens", "valid.offsets.npy", "counts.json"])
def test_damaged_text_is_a_user_error(tmp_path, name):
    config = tiny_config(tmp_path)
    directory = write_earlier(tmp_path / "cache")
    flip_bit(directory / name)
    with pytest.raises(UserError, match=rf"^{directory}: the text that an earlier version prepared .* is damaged \("):
        load_earlier_text(config.data, FINGERPRINT, byte_tokenizer(), progress=False)


def test_text_without_checksums_is_used(tmp_path):
    config = tiny_config(tmp_path)
    write_earlier(tmp_path / "cache", checksums=False)
    text = load_earlier_text(config.data, FINGERPRINT, byte_tokenizer(), progress=False)
    assert (text.n_train_documents, text.n_valid_documents) == (370, 30)
    assert isinstance(text._prepared.train, Shard)
    assert set(text.target_parts().names) == {"position"}, "version 0.1 did not keep the names of the files"
    assert text.document == load_text(config.data, progress=False).document == "line"
