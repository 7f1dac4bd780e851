"""Tokenizers by folder and by name on the Hugging Face Hub: from the cache, or one line where there is no network."""

import json
import shutil

import pytest
import tokenizers

from psann_jax.config import TokenizerConfig
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.data.tokenizer_source import find_tokenizer
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.utils.errors import UserError
from tests.support.tiny import sentences

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as transformers writes it, whose special tokens have uncommon names."""
    path = tmp_path_factory.mktemp("folder")
    names = {"eos_token": "<|stop|>", "bos_token": "<|go|>", "pad_token": "<|pad|>", "unk_token": "<|what|>"}
    trained = train_tokenizer(sentences(200), TokenizerConfig(vocab_size=300, **names))
    (path / "tokenizer.json").write_text(json.dumps(trained.tokenizer_json()))
    saved = {"eos_token": {"content": "<|stop|>"}, "bos_token": "<|go|>", "unk_token": "<|go|>", "pad_token": None}
    (path / "tokenizer_config.json").write_text(json.dumps(saved))
    return path


@pytest.fixture
def cache(folder, tmp_path, monkeypatch):
    """A cache of huggingface_hub with the folder as organisation/name, and as legacy; no network."""
    from huggingface_hub import constants

    for repository in ("models--organisation--name", "models--legacy"):
        target = tmp_path / repository
        shutil.copytree(folder, target / "snapshots" / COMMIT)
        (target / "refs").mkdir()
        (target / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def roles(tokenizer):
    return [tokenizer.names.get(role) for role in ("pad", "bos", "eos", "unk")]


def test_a_folder_names_its_special_tokens(folder):
    tokenizer = Tokenizer.load(folder)
    assert roles(tokenizer) == ["<|pad|>", "<|go|>", "<|stop|>", None]
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("the sun") == library.encode("the sun", add_special_tokens=False).ids


def test_the_config_takes_precedence(folder):
    assert roles(Tokenizer.load(folder, TokenizerConfig(eos_token="<|what|>")))[2] == "<|what|>"


@pytest.mark.parametrize("name", ["organisation/name", "legacy", f"organisation/name@{COMMIT}"])
def test_a_name_in_the_cache(name, folder, cache, monkeypatch):
    monkeypatch.chdir(cache)
    by_name, by_folder = Tokenizer.load(name), Tokenizer.load(folder)
    assert by_name.to_bytes() == by_folder.to_bytes()


def test_a_folder_of_the_working_directory_comes_first(folder, cache, monkeypatch):
    monkeypatch.chdir(cache)
    shutil.copytree(folder, cache / "organisation" / "name")
    assert find_tokenizer("organisation/name", TokenizerConfig())[0].parts[0] == "organisation"


def test_without_a_network_there_is_one_line(cache, monkeypatch):
    monkeypatch.chdir(cache)
    with pytest.raises(UserError) as refused:
        Tokenizer.load("somebody/else")
    message = str(refused.value)
    assert message.startswith("data.tokenizer.path: somebody/else is not a file or folder, is not in the cache of")
    assert "\n" not in message


def test_a_missing_file_is_not_looked_up(tmp_path):
    for name in ("tokenizer.json", "small.tiktoken", "a/b/c", str(tmp_path / "gpt2")):
        with pytest.raises(UserError, match="cannot be read: No such file"):
            Tokenizer.load(name)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"has none of tokenizer\.json, tokenizer\.model, spiece\.model"):
        Tokenizer.load(tmp_path)


def test_a_repository_without_a_file_of_names(cache, monkeypatch):
    """The cache has a mark that the repository has no such file."""
    monkeypatch.chdir(cache)
    snapshot = cache / "models--legacy" / "snapshots" / COMMIT
    (snapshot / "tokenizer_config.json").unlink()
    (cache / "models--legacy" / ".no_exist" / COMMIT).mkdir(parents=True)
    (cache / "models--legacy" / ".no_exist" / COMMIT / "tokenizer_config.json").touch()
    names = {"eos_token": "<|stop|>", "bos_token": "<|go|>"}
    assert roles(Tokenizer.load("legacy", TokenizerConfig(**names)))[:3] == ["<|pad|>", "<|go|>", "<|stop|>"]
