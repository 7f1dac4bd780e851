"""Pieces of sources: whatever their size, they give the documents of the source, each once and in order."""

import gzip
import itertools
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import DataConfig
from psann_jax.data import files, sources
from psann_jax.data.records import Records
from psann_jax.data.sources import open_source, read_piece
from psann_jax.utils.errors import UserError


def of_pieces(source, piece_bytes) -> list[str]:
    return [text for piece in source.pieces(piece_bytes) for _, text in read_piece(piece)]


LINES = st.lists(
    st.sampled_from(["", " ", "\t", "a", "é b", "日" * 9, "\ufeffx", " c\r", "\u2028", "x" * 40]), max_size=30
)


@settings(deadline=None, max_examples=150)
@given(LINES, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.booleans(), st.integers(1, 60), st.data())
def test_ranges_of_a_file(tmp_path_factory, lines, end, has_mark, is_ended, piece_bytes, data):
    unit = data.draw(st.sampled_from(["line", "paragraph"]))
    path = tmp_path_factory.mktemp("range") / "a.txt"
    content = "\ufeff" * has_mark + end.join(lines) + end * is_ended
    path.write_bytes(content.encode())
    whole = list(files.read_documents(path, unit, Records()))
    size = path.stat().st_size
    bounds = [*range(0, size, piece_bytes), None]
    if files.has_ranges(path, unit):
        parts = [list(files.read_documents(path, unit, Records(), a, b)) for a, b in itertools.pairwise(bounds)]
        assert list(itertools.chain.from_iterable(parts)) == whole
    if size:
        source = open_source(str(path), DataConfig(document=unit))
        assert of_pieces(source, piece_bytes) == whole
        assert list(source.documents()) == whole


@pytest.mark.parametrize("piece_bytes", [1, 100, 1000, 10**6])
def test_every_format(tmp_path, piece_bytes):
    texts = [f"text {i} " + "x" * (i % 40) for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    pq.write_table(pa.table({"text": texts}), tmp_path / "c.parquet", row_group_size=30)
    (tmp_path / "d.txt").write_text("\n".join(texts))
    for name in ("a.jsonl", "b.txt.gz", "c.parquet", "d.txt"):
        source = open_source(str(tmp_path / name), DataConfig())
        assert of_pieces(source, piece_bytes) == texts, name
    assert len(open_source(str(tmp_path / "c.parquet"), DataConfig()).pieces(1)) == 10
    assert len(open_source(str(tmp_path / "d.txt"), DataConfig()).pieces(1000)) > 5
    assert len(open_source(str(tmp_path / "b.txt.gz"), DataConfig()).pieces(100)) == 1


def wikitext(n_articles: int) -> list[str]:
    """Returns articles of several paragraphs in the format of WikiText, without the blank lines at their ends."""
    return [f" = Title {i} = \n \n one of {i} \n \n = = Part = = \n \n two of {i}" for i in range(n_articles)]


@pytest.mark.parametrize("piece_bytes", [1, 100, 1000, 10**6])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.parquet", "hf"])
def test_articles_are_never_cut(tmp_path, name, piece_bytes):
    texts = wikitext(20)
    lines = "\n \n".join(["", *texts, ""]).removeprefix("\n").split("\n")
    path = tmp_path / name
    spec = str(path)
    if name == "hf":
        pytest.importorskip("datasets").Dataset.from_dict({"text": lines}).save_to_disk(path)
        spec = f"hf:{path}"
    elif name == "a.parquet":
        pq.write_table(pa.table({"text": lines}), path, row_group_size=7)
    elif name == "a.jsonl":
        path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    else:
        path.write_bytes((gzip.compress if name.endswith(".gz") else bytes)("\n".join(lines).encode()))
    source = open_source(spec, DataConfig(document="article"))
    assert of_pieces(source, piece_bytes) == list(source.documents()) == texts
    assert [len(source.pieces(piece_bytes)), source.unit] == [1, "article"]
    if name in ("a.jsonl", "a.parquet", "hf"):
        assert len(open_source(spec, DataConfig()).pieces(piece_bytes)) > 1 or piece_bytes > 1000


def test_chapters_are_never_cut(tmp_path):
    texts = [f"# Title {i}\n\n```sh\n# no title\n```\n\ntext of {i}" for i in range(20)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    source = open_source(str(tmp_path / "a.txt"), DataConfig(document="heading"))
    assert of_pieces(source, 50) == texts


def test_many_files_are_grouped(tmp_path):
    for i in range(40):
        (tmp_path / f"{i:02d}.txt").write_text(f"{i:02d}" * (500 if i == 17 else 5))
    source = open_source(str(tmp_path / "*.txt"), DataConfig(document="file"))
    pieces = source.pieces(100)
    assert [len(piece.parts) for piece in pieces] == [10, 7, 1, 10, 10, 2]
    assert [index for piece in pieces for index, _ in read_piece(piece)] == list(range(40))
    assert source.files == (str(tmp_path / "*.txt"),) * 40
    few = open_source(str(tmp_path / "0*.txt"), DataConfig(document="file"))
    assert few.files[3] == str(tmp_path / "03.txt")


def test_pieces_are_plain_data(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    (piece,) = open_source(str(tmp_path / "a.txt"), DataConfig()).pieces(100)
    assert list(read_piece(pickle.loads(pickle.dumps(piece)))) == [(0, "one"), (0, "two")]


def test_pieces_do_not_depend_on_times(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n" * 100)
    first = open_source(str(tmp_path / "a.txt"), DataConfig())
    (tmp_path / "a.txt").write_text("one\ntwo\n" * 100)
    second = open_source(str(tmp_path / "a.txt"), DataConfig())
    ranges = [[(p.parts[0].start, p.parts[0].stop) for p in source.pieces(99)] for source in (first, second)]
    assert ranges[0] == ranges[1]
    assert first.fingerprint == second.fingerprint


def test_a_file_that_has_changed_is_a_user_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo")
    source = open_source(str(path), DataConfig())
    path.write_text("one\ntwo\nthree")
    with pytest.raises(UserError, match=r"a.txt: changed while it was read; start again$"):
        list(source.documents())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "é\n" * 50 + "\xff\n", "byte 0xff at offset 150 (line 51) is not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n' * 50 + "{\n", "line 51 is not JSON"),
        ("a.jsonl", '{"text": "a"}\n' * 50 + '{"x": 1}\n', "line 51 has no field 'text'; it has 'x'"),
    ],
)
def test_errors_name_the_line_of_the_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content.encode().replace("\xff".encode(), b"\xff"))
    with pytest.raises(UserError) as error:
        of_pieces(open_source(str(path), DataConfig()), 40)
    assert message in str(error.value)


def test_a_row_of_a_later_row_group_is_named(tmp_path):
    pq.write_table(pa.table({"text": [b"a"] * 30 + [b"\xff"]}), tmp_path / "a.parquet", row_group_size=10)
    with pytest.raises(UserError, match=r"a.parquet: row 30: byte 0xff"):
        of_pieces(open_source(str(tmp_path / "a.parquet"), DataConfig()), 1)


def test_a_data_set_is_opened_again_in_another_process(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    texts = [f"text {i}" for i in range(2500)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "saved")
    pieces = open_source(f"hf:{tmp_path}/saved", DataConfig()).pieces(10_000)
    assert len(pieces) > 2
    monkeypatch.setattr(sources, "_opened", {})
    assert [text for piece in pieces for _, text in read_piece(piece)] == texts
