"""Sources of streams: files, buckets, the web and data sets, in parts."""

import json
import os

import pytest

from psann_jax.config import ConfigError, DataConfig
from psann_jax.data import sources, stream_sources
from psann_jax.data.sources import open_source
from psann_jax.data.stream_sources import open_stream
from psann_jax.utils.errors import UserError
from tests.support.bucket import bucket_at, s3_bucket
from tests.support.web import web_server

LINES = DataConfig(document="line")


def texts(source):
    return [text for part in source.parts for text in part.documents()]


def message(spec, config=LINES):
    with pytest.raises(UserError) as e:
        texts(open_stream(str(spec), config))
    assert "\n" not in str(e.value)
    return str(e.value)


def write_records(path, values, name="text"):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({name: value}) + "\n" for value in values))
    return path


def test_each_file_is_a_part_and_its_documents_are_those_of_the_stored_source(tmp_path):
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.txt").write_text("three\n")
    write_records(tmp_path / "c.jsonl", ["four", "", "five"])
    for pattern in ("*.txt", "*", "c.jsonl"):
        found = open_stream(str(tmp_path / pattern), LINES)
        assert [part.name for part in found.parts] == sorted(map(str, tmp_path.glob(pattern)))
        assert texts(found) == list(open_source(str(tmp_path / pattern), LINES).documents())
    assert found.settings == {"text_field"}
    assert open_stream(str(tmp_path / "*"), LINES).settings == {"text_field", "document"}


@pytest.mark.parametrize("document", ["line", "paragraph"])
def test_large_files_are_cut_into_parts(tmp_path, monkeypatch, document):
    monkeypatch.setattr(stream_sources, "PIECE_BYTES", 1000)
    text = "".join(f"line {i} of the text\n" + "\n" * (i % 3) for i in range(500))
    (tmp_path / "a.txt").write_text(text)
    config = DataConfig(document=document)
    found = open_stream(str(tmp_path / "a.txt"), config)
    assert len(found.parts) > 10
    assert texts(found) == list(open_source(str(tmp_path / "a.txt"), config).documents())
    assert len({json.dumps(part.identity) for part in found.parts}) == len(found.parts)


@pytest.mark.parametrize("content", ["other\n", "two\n"])
def test_a_remote_file_that_is_replaced_after_the_start_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text("one\n")
    with web_server(tmp_path) as web, s3_bucket() as url:
        bucket_at(url).upload(tmp_path, ["a.txt"])
        found = [open_stream(name, LINES) for name in (f"{web.url}/a.txt", f"{url}/*.txt")]
        assert [texts(source) for source in found] == [["one"], ["one"]]
        (tmp_path / "a.txt").write_text(content)
        os.utime(tmp_path / "a.txt", (0, 0))  # the server gives the time in seconds
        bucket_at(url).upload(tmp_path, ["a.txt"])
        for source in found:
            with pytest.raises(UserError, match=r"/a.txt: cannot be read: it has changed since the run began$"):
                texts(source)


def test_parts_can_be_read_again(tmp_path):
    path = write_records(tmp_path / "a.jsonl", "abc")
    (part,) = open_stream(str(path), DataConfig()).parts
    assert list(part.documents()) == list(part.documents()) == ["a", "b", "c"]


def test_files_of_the_web(tmp_path):
    write_records(tmp_path / "a.jsonl", "abc")
    with web_server(tmp_path) as web:
        found = open_stream(f"{web.url}/a.jsonl", DataConfig())
        assert texts(found) == ["a", "b", "c"]
        assert [part.identity for part in found.parts] == [[f"{web.url}/a.jsonl", 42]]
        assert message(f"{web.url}/b.jsonl") == (f"{web.url}/b.jsonl: cannot be read: the server answers 404 Not Found")
        assert "unknown file type" in message(f"{web.url}/b.html")
        expected = f"data.sources: {web.url}/a.jsonl: files of the web are read with data.stream=True only"
        with pytest.raises(UserError, match=f"^{expected}$"):
            open_source(f"{web.url}/a.jsonl", DataConfig())


def test_objects_of_a_bucket(tmp_path):
    with s3_bucket() as url:
        for name in ("b 1", "a [2]"):
            path = write_records(tmp_path / f"{name}.jsonl", [name, "x"])
            bucket_at(f"{url}/texts").upload(tmp_path, [path.name])
        found = open_stream(f"{url}/texts/*.jsonl", DataConfig())
        assert [part.name for part in found.parts] == [f"{url}/texts/{name}.jsonl" for name in ("a [2]", "b 1")]
        assert texts(found) == ["a [2]", "x", "b 1", "x"]
        identity = [part.identity for part in found.parts]
        assert [part.identity for part in open_stream(f"{url}/texts/*.jsonl", DataConfig()).parts] == identity
        write_records(tmp_path / "b 1.jsonl", ["b 2", "x"])
        bucket_at(f"{url}/texts").upload(tmp_path, ["b 1.jsonl"])
        changed = [part.identity for part in open_stream(f"{url}/texts/*.jsonl", DataConfig()).parts]
        assert (changed[0] == identity[0], changed[1] == identity[1]) == (True, False)
        assert f"data.sources: there is no object {url}/gone.txt" in message(f"{url}/gone.txt")


def test_shards_of_a_data_set(tmp_path):
    for i in range(3):
        write_records(tmp_path / "set" / f"train-{i}.jsonl", [f"{i} {k}" for k in range(5)])
    found = open_stream(f"hf:{tmp_path / 'set'}", DataConfig())
    assert len(found.parts) == 3
    assert [list(part.documents()) for part in found.parts] == [[f"{i} {k}" for k in range(5)] for i in range(3)]
    assert texts(found) == texts(found)
    assert "has no field 'body'" in message(f"hf:{tmp_path / 'set'}", DataConfig(text_field="body"))
    assert "cannot load hf:" in message(f"hf:{tmp_path / 'set'}@test")


def test_a_data_set_on_a_disk(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(100)]}).save_to_disk(tmp_path / "saved")
    monkeypatch.setattr(sources, "PIECE_BYTES", 200)
    found = open_stream(f"hf:{tmp_path / 'saved'}", DataConfig())
    assert len(found.parts) > 3
    assert texts(found) == [f"text {i}" for i in range(100)]


def test_articles_go_on_in_the_next_shard_of_a_data_set(tmp_path):
    lines = [" = One = ", "", "a", "b", "", " = Two = ", "", "c"]
    write_records(tmp_path / "set" / "train-0.jsonl", ["", *lines[:3]])
    write_records(tmp_path / "set" / "train-1.jsonl", lines[3:])
    found = open_stream(f"hf:{tmp_path / 'set'}", DataConfig(document="article"))
    assert texts(found) == [" = One = \n\na\nb", " = Two = \n\nc"]


def test_messages_and_prompts_are_marked(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"q": "what?", "a": "that"}))
    config = DataConfig(prompt_field="q", completion_field="a")
    (text,) = texts(open_stream(str(path), config))
    assert text.parts == (("what?", False), ("that", True))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("builtin:python", "data.sources: builtin:python cannot be streamed; use files, URLs or hf:ORG/NAME"),
        ("tfds:x", "data.sources: tfds:x cannot be streamed"),
        ("{}/none.txt", "data.sources: there is no file '{}/none.txt'"),
        ("{}/a.pdf", "{}/a.pdf: unknown file type"),
        ("ftp://x/a.txt", "unknown scheme ftp://"),
    ],
)
def test_errors_in_names(tmp_path, spec, expected):
    (tmp_path / "a.pdf").touch()
    assert expected.replace("{}", str(tmp_path)) in message(spec.replace("{}", str(tmp_path)))


def test_what_one_document_is_must_be_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match=r"^data.document: is auto, which would have to read the .txt files ahead"):
        open_stream(str(tmp_path / "a.txt"), DataConfig())


def test_empty_files_are_named(tmp_path, capsys):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").write_text("text")
    assert texts(open_stream(str(tmp_path / "*.txt"), LINES)) == ["text"]
    assert capsys.readouterr().err == f"warning: {tmp_path / 'a.txt'}: is empty\n"
