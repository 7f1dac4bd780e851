"""A safetensors file restores the same bits, config and tokenizer; invalid files are named."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import Config, DataConfig, TrainConfig
from psann_jax.convert.safetensors_file import read_safetensors, write_safetensors
from psann_jax.convert.weights import Weights, flat_params, nested_params
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.models.network import build
from psann_jax.utils.errors import UserError
from tests.support.variants import VARIANTS, randomised, variant

TOKENIZER = byte_tokenizer()


def weights_of(name, **changes):
    model = variant(name, vocab_size=TOKENIZER.vocab_size, **changes)
    config = Config(model=model, data=DataConfig(max_length=32), train=TrainConfig(batch_tokens=32))
    return Weights(config, jax.tree.map(np.array, randomised(build(model))), TOKENIZER)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_round_trip_is_exact(name, tmp_path):
    weights = weights_of(name)
    weights.params["embed"][0, :3] = [np.nan, -0.0, 1e-42]
    write_safetensors(tmp_path / "a" / "m.safetensors", weights)
    read = read_safetensors(tmp_path / "a" / "m.safetensors")
    assert read.config == weights.config
    assert read.tokenizer.to_bytes() == TOKENIZER.to_bytes()
    ours, theirs = flat_params(weights.params), flat_params(read.params)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        assert theirs[path].dtype == array.dtype
        assert theirs[path].tobytes() == array.tobytes(), path
    write_safetensors(tmp_path / "b.safetensors", read)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a" / "m.safetensors").read_bytes()


def test_names_are_the_dotted_paths_of_the_tree(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", weights_of("waveresnet_interleave"))
    names = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert {"embed", "head", "blocks.attn.q.kernel", "blocks.mlp.act.frequency", "blocks.wave.conv"} <= names.keys()


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.lists(st.sampled_from("abc"), min_size=3, max_size=3).map(".".join), st.integers(0, 9)))
def test_nested_is_the_inverse_of_flat(flat):
    arrays = {name: np.int32(value) for name, value in flat.items()}
    assert flat_params(nested_params(arrays)) == arrays


def test_without_a_tokenizer(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", dataclasses.replace(weights_of("respsann"), tokenizer=None))
    assert read_safetensors(tmp_path / "m.safetensors").tokenizer is None


def broken_files(directory):
    """Writes invalid files and returns a part of the expected message by file name."""
    weights = weights_of("respsann")
    write_safetensors(directory / "whole.safetensors", weights)
    whole = (directory / "whole.safetensors").read_bytes()
    arrays = flat_params(weights.params)
    config = dataclasses.asdict(weights.config)

    def file(kept=arrays, **about):
        return safetensors.numpy.save(kept, {"psann_jax": json.dumps({"version": 1, "config": config, **about})})

    contents = {
        "empty": (b"", "is not a complete safetensors file"),
        "truncated": (whole[:-100], "is not a complete safetensors file"),
        "header": (whole[:50], "is not a complete safetensors file"),
        "text": (b"hello " * 100, "is not a complete safetensors file"),
        "foreign": (safetensors.numpy.save(arrays, {"format": "pt"}), "of another program"),
        "metadata": (safetensors.numpy.save(arrays, {"psann_jax": "[1]"}), "its config or tokenizer"),
        "newer": (file(version=9), "has format 9"),
        "version": (file(version="x"), "its config or tokenizer"),
        "config": (file(config={"model": {"d_modl": 3}}), "model.d_modl: unknown key, did you mean d_model?"),
        "list": (file(config=[1]), "its config or tokenizer"),
        "tokenizer": (file(tokenizer="[]"), "its config or tokenizer"),
        "vocabulary": (file(config={**config, "model": {**config["model"], "vocab_size": 9}}), "embed: "),
        "lacking": (file({"embed": arrays["embed"]}), "blocks/mlp/fc1/kernel: missing, must be"),
    }
    for name, (content, _) in contents.items():
        (directory / f"{name}.safetensors").write_bytes(content)
    return {name: message for name, (_, message) in contents.items()} | {"missing": "there is no such file"}


def test_invalid_files_are_named(tmp_path):
    for name, message in broken_files(tmp_path).items():
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(UserError) as caught:
            read_safetensors(path)
        assert str(caught.value).startswith(str(path)), name
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value), name


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_safetensors(tmp_path / "file" / "m.safetensors", weights_of("respsann"))
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_safetensors(tmp_path / "m.safetensors", weights_of("respsann"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m.safetensors"]
