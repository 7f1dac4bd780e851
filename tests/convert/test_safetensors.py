"""A safetensors file restores the same bits, config and tokenizer; invalid files are named."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import TokenizerConfig
from psann_jax.convert.read import read_weights
from psann_jax.convert.safetensors_file import read_safetensors, write_safetensors
from psann_jax.convert.weights import flat_params, nested_params
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.utils.errors import UserError
from tests.support.saved import TOKENIZER
from tests.support.variants import quick_variants
from tests.support.weights import weights_of

NAMES = {"bfloat16": "BF16", "float16": "F16", "float64": "F64"}


@quick_variants
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
        "sizeless": (
            file(config={**config, "model": {**config["model"], "vocab_size": 0}}),
            "must have model.vocab_size",
        ),
        "integers": (
            file({**arrays, "embed": arrays["embed"].astype(np.int8)}),
            "embed is of type I8, must be one of F32",
        ),
        "below": (file({"head": arrays["head"], "head.lora": arrays["head"]}), "the name 'head"),
        "above": (file({"a": arrays["head"], "a.b.c": arrays["head"]}), "the name 'a"),
        "damaged": (file(tokenizer=TOKENIZER.to_bytes().decode().replace("bytes", "bpe")), "its config or tokenizer"),
        "family": (file(config={"model": {"base": "sudoku"}}), "its config "),
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


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 8e-3), ("float16", 1e-3), ("float64", 0)])
def test_other_floating_point_types_become_float32(dtype, tolerance, tmp_path):
    """As other programs write them, with the metadata kept."""
    weights, path = weights_of("respsann"), tmp_path / "m.safetensors"
    write_safetensors(path, weights)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    dtypes = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64}
    header, data = {"__metadata__": metadata}, b""
    for name, array in flat_params(weights.params).items():
        content = array.astype(dtypes[dtype]).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": NAMES[dtype], "shape": array.shape, "data_offsets": offsets}
        data += content
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    read = flat_params(read_safetensors(path).params)
    for name, array in flat_params(weights.params).items():
        assert read[name].dtype == np.float32
        np.testing.assert_allclose(read[name], array, rtol=tolerance, atol=1e-7)


def test_any_damage_is_an_error_in_one_line_or_other_weights(tmp_path):
    """Random flips, cuts and insertions, most of them in the header, which holds config and tokenizer."""
    path = tmp_path / "m.safetensors"
    weights = weights_of("respsann")
    for tokenizer in (
        TOKENIZER,
        train_tokenizer(["a stone falls"] * 9, TokenizerConfig(kind="bpe", vocab_size=280), False),
    ):
        write_safetensors(path, dataclasses.replace(weights, tokenizer=tokenizer))
        whole, rng = path.read_bytes(), np.random.default_rng(0)
        n_header = 8 + int.from_bytes(whole[:8], "little")
        for _ in range(150):
            content = bytearray(whole)
            for at in rng.integers(0, n_header if rng.random() < 0.9 else len(whole), rng.integers(1, 4)).tolist():
                change = rng.integers(3)
                if change == 0:
                    content[at : at + 1] = bytes([whole[at] ^ 1 << int(rng.integers(8))])
                elif change == 1:
                    content[at : at + 1] = rng.choice([b"0", b"9", b"-", b'"', b"[", b"e5", b"null"])
                elif rng.random() < 0.3:
                    del content[at:]
            path.write_bytes(content)
            message = refusal(path)
            assert message is None or (message.startswith(str(path)) and "\n" not in message), message


def refusal(path):
    """The message with which a file is refused, or None."""
    try:
        read_weights(path)
    except UserError as error:
        return str(error)
    return None


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_safetensors(tmp_path / "file" / "m.safetensors", weights_of("respsann"))
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_safetensors(tmp_path / "m.safetensors", weights_of("respsann"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m.safetensors"]
