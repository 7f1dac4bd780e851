"""Sources: files and globs, TensorFlow Datasets and Hugging Face data sets."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from psann_jax.config import DataConfig
from psann_jax.data.sources import _fingerprint, open_source
from psann_jax.utils.errors import UserError

CONFIG = DataConfig()


def read(spec: str, config: DataConfig = CONFIG) -> list[str]:
    return list(open_source(str(spec), config).documents())


def message(spec: str, config: DataConfig = CONFIG) -> str:
    with pytest.raises(UserError) as e:
        read(spec, config)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_a_glob_reads_files_sorted_by_name(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.jsonl", "d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": f"in {name}"}) if "json" in name else f"in {name}\n")
    assert read(tmp_path / "*.txt") == ["in a.txt", "in b.txt"]
    assert read(tmp_path / "**" / "*.[tj]*") == ["in a.txt", "in b.txt", "in sub/c.jsonl"]
    assert "unknown file type" in message(tmp_path / "*.md")


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("text")
    assert read(tmp_path / "a[1].txt") == ["text"]


def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    assert read("~/a.txt") == ["text"]


def test_empty_files_of_a_glob_are_named(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").touch()
    assert read(tmp_path / "*.txt") == ["text"]
    assert capsys.readouterr().err == f"warning: {tmp_path / 'b.txt'}: is empty\n"


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.xz", "a.jsonl.zst", "a.txt"])
def test_empty_files_of_any_format_have_no_documents(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / f"other{name[1:]}").touch()
    assert list(open_source(str(tmp_path / "*"), DataConfig(document="line")).documents()) == []
    with pytest.raises(UserError, match=r": is empty$"):
        open_source(str(tmp_path / name), DataConfig(document="line"))


def test_a_pipe_is_refused_without_waiting_for_its_other_end(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"^data.sources: .*a.txt is not a regular file; write the text to a file"):
        open_source(str(tmp_path / "a.txt"), DataConfig(document="line"))


def test_an_empty_name_is_refused():
    with pytest.raises(UserError, match=r"^data.sources: has an empty name; name a file, or another source$"):
        open_source("", DataConfig())


def test_broken_links_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    for name in ("b.txt", "*.txt"):
        assert message(tmp_path / name) == (
            f"{tmp_path / 'b.txt'}: is a broken link to {tmp_path / 'gone.txt'}; remove or repair it"
        )


def test_a_change_of_line_ends_changes_the_fingerprint_of_whole_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\r\n")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    kept_by_0_1 = _fingerprint(["file"], [((".txt", ""), sha256)])
    assert open_source(str(path), DataConfig(document="file")).fingerprint != kept_by_0_1
    kept_by_0_1 = _fingerprint(["line"], [((".txt", ""), sha256)])
    assert open_source(str(path), DataConfig(document="line")).fingerprint == kept_by_0_1


def test_documents_can_be_read_again(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    source = open_source(str(tmp_path / "a.txt"), CONFIG)
    assert list(source.documents()) == list(source.documents()) == ["one", "two"]


def test_fingerprint_follows_the_content_and_the_settings_that_affect_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo")
    first = open_source(str(path), CONFIG).fingerprint
    assert open_source(str(path), DataConfig(document="file")).fingerprint != first
    assert open_source(str(path), DataConfig(text_field="body")).fingerprint == first
    (tmp_path / "a.jsonl").write_text('{"text": "a", "body": "b"}')
    records = [open_source(str(tmp_path / "a.jsonl"), DataConfig(text_field=name)) for name in ("text", "body")]
    assert records[0].fingerprint != records[1].fingerprint
    (tmp_path / "b.txt").write_text("one\ntwo")
    assert open_source(str(tmp_path / "b.txt"), CONFIG).fingerprint == first
    assert open_source(str(tmp_path / "*.txt"), CONFIG).fingerprint != first
    path.write_text("one\ntwp")
    assert open_source(str(path), CONFIG).fingerprint != first


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{}/none.txt", "data.sources: there is no file '{}/none.txt'; other forms are builtin:python"),
        ("{}/none*.txt", "data.sources: no file matches '{}/none*.txt'"),
        ("{}", "data.sources: {} is a directory; name its files with a glob such as {}/*.txt"),
        ("{}/empty.txt", "{}/empty.txt: is empty"),
        ("builtin:ruby", "data.sources: unknown built-in text 'ruby'; the only one is builtin:python"),
        ("wikitext", "data.sources: there is no file 'wikitext'"),
        ("~nouser/x.txt", "data.sources: ~nouser/x.txt: there is no home directory of this user"),
        ("x" * 300 + ".txt", "x.txt: cannot be read: File name too long"),
        ("a\0.txt", "data.sources: is 'a\\x00.txt', which has a character that no path can have"),
        ("a.txt,b.txt", "several sources are a tuple, ('a.txt', 'b.txt')"),
        ("hf:~nouser/x", "data.sources: ~nouser/x: there is no home directory of this user"),
        ("{}/notes.pdf", "{}/notes.pdf: unknown file type; use .txt or .jsonl, plain or with .gz, .xz or .zst, or"),
    ],
)
def test_errors_in_names(tmp_path, spec, expected):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "notes.pdf").touch()
    assert expected.replace("{}", str(tmp_path)) in message(spec.replace("{}", str(tmp_path)))


def test_errors_name_the_setting():
    with pytest.raises(UserError, match=r"^data.valid_sources: "):
        open_source("none.txt", CONFIG, "data.valid_sources")


@pytest.mark.parametrize(("spec", "module"), [("hf:a/b", "datasets"), ("tfds:a", "tensorflow_datasets")])
def test_a_missing_library_is_a_user_error(monkeypatch, spec, module):
    monkeypatch.setitem(sys.modules, module, None)
    extra = spec.partition(":")[0]
    assert message(spec).endswith(f"{spec}: needs {module}; pip install 'psann_jax[{extra}]'")


# --- tfds -----------------------------------------------------------------------------------------------

BUILD = """
import json, sys
import tensorflow_datasets as tfds
from psann_jax.config import DataConfig
from psann_jax.data.sources import open_source
from psann_jax.utils.errors import UserError

class TinyTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="one"), tfds.core.BuilderConfig(name="two")]

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "raw": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {name: self._examples(name, n) for name, n in (("train", 40), ("validation", 5))}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, split, n):
        for i in range(n):
            yield i, {"text": f"{self.builder_config.name} {split} {i} é", "raw": b"\\xff"}

def read(spec, **kwargs):
    try:
        return list(open_source(spec, DataConfig(**kwargs)).documents())
    except UserError as e:
        return str(e)

out = {spec: read(spec) for spec in sys.argv[1:]}
out["fingerprint"] = [open_source(spec, DataConfig()).fingerprint for spec in sys.argv[1:3]]
out["raw"] = read("tfds:tiny_texts/one", text_field="raw")
out["absent"] = read("tfds:tiny_texts/one", text_field="body")
out["tensorflow"] = "tensorflow" in sys.modules
print(json.dumps(out))
"""
TFDS_SPECS = [
    "tfds:tiny_texts/one",
    "tfds:tiny_texts/two:1.0.0@train",
    "tfds:tiny_texts/two@validation",
    "tfds:tiny_texts/one@train[:10]",
    "tfds:tiny_texts/three",
    "tfds:tiny_texts/one@nosplit",
    "tfds:no_such_texts",
]


@pytest.fixture(scope="module")
def tfds_home(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def tfds_report(tfds_home):
    env = os.environ | {"TFDS_DATA_DIR": str(tfds_home)}
    command = [sys.executable, "-c", BUILD, *TFDS_SPECS]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_tfds_splits_configs_and_versions(tfds_report):
    train = {f"one train {i} é" for i in range(40)}
    assert set(tfds_report["tfds:tiny_texts/one"]) == train
    assert len(tfds_report["tfds:tiny_texts/one"]) == 40
    assert set(tfds_report["tfds:tiny_texts/two:1.0.0@train"]) == {f"two train {i} é" for i in range(40)}
    assert set(tfds_report["tfds:tiny_texts/two@validation"]) == {f"two validation {i} é" for i in range(5)}
    assert tfds_report["tfds:tiny_texts/one@train[:10]"] == tfds_report["tfds:tiny_texts/one"][:10]
    assert tfds_report["fingerprint"][0] != tfds_report["fingerprint"][1]


def test_tfds_needs_no_tensorflow(tfds_report):
    assert tfds_report["tensorflow"] is False


def test_tfds_errors_are_one_line(tfds_report):
    for spec in TFDS_SPECS[4:]:
        assert tfds_report[spec].startswith(f"data.sources: cannot load {spec} (the form is tfds:NAME")
        assert "\n" not in tfds_report[spec]
    assert "Unknown split 'nosplit'" in tfds_report["tfds:tiny_texts/one@nosplit"]
    assert "'raw' is not UTF-8" in tfds_report["raw"]
    assert "has no field 'body'" in tfds_report["absent"]


def test_tfds_directory_of_a_prepared_version(tfds_home, tfds_report):
    folder = tfds_home / "tiny_texts" / "one" / "1.0.0"
    assert read(f"tfds:{folder}") == tfds_report["tfds:tiny_texts/one"]
    assert open_source(f"tfds:{folder}", CONFIG).fingerprint == tfds_report["fingerprint"][0]


# --- Hugging Face ---------------------------------------------------------------------------------------


@pytest.fixture
def hf_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "texts"
    folder.mkdir()
    records = [{"text": f"text {i}", "label": i} for i in range(2500)] + [{"text": None, "label": 0}]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "validation.jsonl").write_text(json.dumps({"text": "held out", "label": 0}))
    return folder


def test_hf_splits(hf_folder):
    assert read(f"hf:{hf_folder}") == [f"text {i}" for i in range(2500)]
    assert read(f"hf:{hf_folder}@validation") == ["held out"]
    assert read(f"hf:{hf_folder}/default@validation") == ["held out"]


def test_hf_data_sets_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    texts, held_out = (datasets.Dataset.from_dict({"text": texts}) for texts in (["a", "b"], ["c"]))
    texts.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": texts, "validation": held_out}).save_to_disk(tmp_path / "two")
    assert read(f"hf:{tmp_path}/one") == read(f"hf:{tmp_path}/two") == ["a", "b"]
    assert read(f"hf:{tmp_path}/two@validation") == ["c"]
    assert "it has no split 'validation', only train" in message(f"hf:{tmp_path}/one@validation")
    assert "it has no split 'test', only train, validation" in message(f"hf:{tmp_path}/two@test")
    fingerprints = {open_source(f"hf:{tmp_path}/{name}", CONFIG).fingerprint for name in ("one", "two@validation")}
    assert len(fingerprints) == 2


def test_hf_fingerprint(hf_folder):
    first = open_source(f"hf:{hf_folder}", CONFIG).fingerprint
    assert open_source(f"hf:{hf_folder}", CONFIG).fingerprint == first
    assert open_source(f"hf:{hf_folder}@validation", CONFIG).fingerprint != first


def test_hf_errors_are_one_line(hf_folder):
    assert "BuilderConfig 'three' not found" in message(f"hf:{hf_folder}/three")
    assert 'Unknown split "test"' in message(f"hf:{hf_folder}@test")
    assert "has no field 'body'; it has 'text', 'label'" in message(f"hf:{hf_folder}", DataConfig(text_field="body"))
    assert "'label' holds int" in message(f"hf:{hf_folder}", DataConfig(text_field="label"))


@pytest.mark.parametrize(
    ("spec", "dataset", "config", "split"),
    [
        ("hf:Salesforce/wikitext/wikitext-103-raw-v1", "Salesforce/wikitext", "wikitext-103-raw-v1", "train"),
        ("hf:org/name@validation", "org/name", None, "validation"),
        ("hf:name", "name", None, "train"),
    ],
)
def test_hf_names_are_parsed(monkeypatch, tmp_path, spec, dataset, config, split):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_dict({"text": ["a", "b"]})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read(spec) == ["a", "b"]
    assert asked == [((dataset, config), {"split": split, "streaming": False})]


def test_hf_folder_with_an_at_sign(hf_folder):
    folder = hf_folder.rename(hf_folder.parent / "texts@home")
    assert read(f"hf:{folder}@validation") == ["held out"]
    assert len(read(f"hf:{folder}/default")) == 2500


def test_hf_without_network_is_a_user_error(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert message("hf:org/name") == (
        "data.sources: cannot load hf:org/name (the form is hf:ORG/NAME[/CONFIG][@SPLIT]): "
        "Couldn't reach 'org/name' on the Hub"
    )
