"""Parts of validation targets: ranges of positions and sources, by hand and on files."""

import numpy as np
import pytest

from psann_jax.config import DataConfig, TokenizerConfig
from psann_jax.data.loader import load_text
from psann_jax.data.shards import Shard
from psann_jax.data.target_parts import TextParts
from psann_jax.data.windows import PackedWindows


def windows_of(lengths, length, **options):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return PackedWindows(Shard(np.arange(offsets[-1]), offsets, 0), length, 0, keep_last=True, **options)


@pytest.mark.parametrize(
    ("length", "names"),
    [
        (8, ("1-8",)),
        (16, ("1-16",)),
        (17, ("1-16", "17-17")),
        (300, ("1-16", "17-64", "65-256", "257-300")),
        (1024, ("1-16", "17-64", "65-256", "257-1024")),
    ],
)
def test_ranges_grow_by_powers_of_four_up_to_the_window(length, names):
    parts = TextParts(windows_of([50], length), 1, length)
    assert parts.names == {"position": names}


def test_parts_by_hand():
    # Documents of 22, 3 and 6 tokens in windows of 20 targets; the first two documents are of source a.
    parts = TextParts(windows_of([22, 3, 6], 20), 2, 20, [("a", 25), ("b", 6)])
    found = parts.of_rows(0, 4)
    assert parts.names == {"position": ("1-16", "17-20"), "source": ("a", "b")}
    assert found["position"][0].tolist() == [0] * 16 + [1] * 4
    # The second window begins with token 20: its targets are 21; 23, 24; 26 to 30, without the documents' first tokens.
    targets = [0] + [-1] + [0, 0] + [-1] + [0] * 5
    assert found["position"][1].tolist() == targets + [-1] * 10
    assert found["source"].tolist() == [[0] * 20, [0, -1, 0, 0, -1] + [1] * 5 + [-1] * 10, [-1] * 20, [-1] * 20]
    assert (found["position"][2:] == -1).all()


def test_without_a_document_mask_positions_are_those_in_the_window():
    found = TextParts(windows_of([3] * 10, 20, document_mask=False), 2, 20).of_rows(0, 2)
    assert found["position"].tolist() == [[0] * 16 + [1] * 4, [0] * 9 + [-1] * 11]


def test_names_occurring_twice_are_one_source():
    parts = TextParts(windows_of([4, 4, 4], 11), 1, 11, [("a", 4), ("b", 4), ("a", 4)])
    assert parts.names["source"] == ("a", "b")
    assert parts.of_rows(0, 1)["source"].tolist() == [[0, 0, 0, -1, 1, 1, 1, -1, 0, 0, 0]]


def data_config(tmp_path, **options):
    options = {"sources": (str(tmp_path / "*.txt"),), "max_length": 8, "cache_dir": str(tmp_path / "cache")} | options
    return DataConfig(**options, tokenizer=TokenizerConfig(kind="bytes"))


@pytest.mark.parametrize("with_valid_sources", [True, False])
def test_validation_files_are_the_sources(tmp_path, with_valid_sources):
    texts = {tmp_path / f"{name}.txt": "\n".join([name * 5] * 20) for name in "abc"}
    for path, text in texts.items():
        path.write_text(text)
    split = {"valid_sources": (str(tmp_path / "[bc].txt"),)} if with_valid_sources else {"valid_fraction": 0.2}
    text = load_text(data_config(tmp_path, **split), progress=False)
    parts = text.target_parts()
    # A text that is split has validation documents of each of its lengths, all of which are equal here.
    assert set(parts.names["source"]) <= {str(path) for path in texts}
    found = parts.of_rows(0, text.n_valid_windows)["source"]
    for i in range(text.n_valid_windows):
        window = text.valid_windows[i]
        for token, part in zip(window["tokens"][1:], found[i], strict=True):
            if part >= 0 and token not in (text.tokenizer.bos_id, text.tokenizer.eos_id):
                name = parts.names["source"][part]
                assert text.tokenizer.decode([int(token)]) == name.removesuffix(".txt")[-1]
    if with_valid_sources:
        assert parts.names["source"] == tuple(str(tmp_path / f"{name}.txt") for name in "bc")


def test_many_files_are_one_source(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("\n".join([name * 5] * 20))
    monkeypatch.setattr("psann_jax.data.sources._NAMED_FILES", 2)
    text = load_text(data_config(tmp_path, valid_fraction=0.2), progress=False)
    assert text.target_parts().names["source"] == (str(tmp_path / "*.txt"),)
