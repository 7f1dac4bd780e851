"""Folders of transformers: parameters, settings and tokenizers survive; what has no counterpart is named."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import TokenizerConfig
from psann_jax.convert.hf import own
from psann_jax.convert.hf.read import read_folder
from psann_jax.convert.hf.write import tokenizer_files, write_folder
from psann_jax.convert.read import read_weights
from psann_jax.convert.weights import Training, flat_params
from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.utils.errors import UserError
from tests.support.tiny import sentences
from tests.support.variants import quick_variants
from tests.support.weights import weights_of

# Variant and changed settings -> the standard architecture that equals it.
STANDARD = {
    ("modern", ()): "apertus",
    ("modern", (("mlp_activation", "silu"), ("n_kv_heads", 2), ("tied_embeddings", True))): "apertus",
    ("modern", (("qk_norm", False), ("bias", True), ("n_kv_heads", 1))): "arcee",
    ("modern", (("mlp_activation", "swiglu"),)): "qwen3",
    ("modern", (("mlp_activation", "swiglu"), ("qk_norm", False), ("bias", True))): "llama",
    ("transformer", ()): "gpt_neox",
    ("transformer", (("tied_embeddings", True), ("mlp_activation", "relu"))): "gpt_neox",
    ("waveresnet", (("mlp_activation", "gelu"), ("residual_alpha", False))): "arcee",
}


def weights(case):
    name, changes = case
    return weights_of(name, **dict(changes))


def same(a, b):
    a, b = flat_params(a.params), flat_params(b.params)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def content(folder):
    return json.loads((folder / "config.json").read_text())


@quick_variants
def test_a_folder_of_every_variant_is_read_again(name, tmp_path):
    ours = weights_of(name)
    write_folder(tmp_path / "a", ours, "runs/a")
    again = read_folder(tmp_path / "a")
    assert same(ours, again)
    assert again.config.data.max_length == ours.config.data.max_length
    text = "the sun <eos> falls"
    assert again.tokenizer.encode(text) == ours.tokenizer.encode(text)
    assert again.tokenizer.names == ours.tokenizer.names
    has_code = "auto_map" in content(tmp_path / "a")
    assert has_code == any(path.suffix == ".py" for path in (tmp_path / "a").iterdir())
    if has_code:
        model = ours.config.model
        assert again.config.model == (model.resolve() if hasattr(model, "resolve") else model)


@pytest.mark.parametrize("case", STANDARD, ids=str)
def test_standard_architectures(case, tmp_path):
    ours = weights(case)
    write_folder(tmp_path / "a", ours, "runs/a")
    assert content(tmp_path / "a")["model_type"] == STANDARD[case]
    again = read_folder(tmp_path / "a")
    assert same(ours, again)
    names = ("mlp_activation", "norm", "qk_norm", "bias", "tied_embeddings", "residual_alpha", "kv_heads", "d_mlp")
    before, after = ours.config.model.resolve(), again.config.model.resolve()
    assert [getattr(before, name) for name in names] == [getattr(after, name) for name in names]


def test_the_rotation_turns_halves(tmp_path):
    """Features (2i, 2i+1) of a head become (i, i + K/2)."""
    ours = weights_of("modern")
    write_folder(tmp_path / "a", ours, "runs/a")
    arrays = safetensors.numpy.load_file(tmp_path / "a" / "model.safetensors")
    q_DxD = ours.params["blocks"]["attn"]["q"]["kernel"][1]
    rows = arrays["model.layers.1.self_attn.q_proj.weight"]
    assert [np.flatnonzero((row == q_DxD.T).all(1))[0] for row in rows[:4]] == [0, 2, 1, 3]  # K = 4


def test_the_card(tmp_path):
    ours = replace(weights_of("respsann"), training=Training(7, "f00d", 2.0))
    write_folder(tmp_path / "mine", ours, "runs/a")
    card = (tmp_path / "mine" / "README.md").read_text()
    for part in ("license: unknown", "`f00d`", "2.0000 nats per token, perplexity 7.39", "`a`, update 7", "mine"):
        assert part in card
    assert f"| parameters | {ours.network().n_params:,} |" in card


def test_generation_ends_at_eos(tmp_path):
    ours = weights_of("respsann")
    write_folder(tmp_path / "a", ours, "runs/a")
    generation = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert generation.items() >= ids.items()
    assert content(tmp_path / "a").items() >= ids.items()


def test_weights_in_parts_and_in_bfloat16(tmp_path):
    import ml_dtypes

    write_folder(tmp_path / "a", weights_of("modern"), "runs/a")
    arrays = safetensors.numpy.load_file(tmp_path / "a" / "model.safetensors")
    parts = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(arrays)}
    for part in set(parts.values()):
        own = {name: arrays[name].astype(ml_dtypes.bfloat16) for name in arrays if parts[name] == part}
        safetensors.numpy.save_file(own, tmp_path / "a" / part)
    (tmp_path / "a" / "model.safetensors").unlink()
    (tmp_path / "a" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    again = flat_params(read_folder(tmp_path / "a").params)
    for name, a in flat_params(weights_of("modern").params).items():
        assert np.array_equal(again[name], a.astype(ml_dtypes.bfloat16).astype(np.float32))


REFUSED = {
    "other angles": ({"rope_parameters": {"rope_theta": 500000.0}}, "rope_theta is 500000.0, must be 10000.0"),
    "scaled angles": ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0}}, "rope_type is 'llama3'"),
    "angles of version 4": ({"rope_parameters": None, "rope_theta": 20000.0}, "rope_theta is 20000.0"),
    "no angles": (dict.fromkeys(("rope_parameters", "rope_theta", "rope_scaling")), "rope_theta is None"),
    "another epsilon": ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05, must be 1e-06"),
    "default epsilon": ({"rms_norm_eps": None}, "rms_norm_eps is None"),
    "biases": ({"attention_bias": True}, "attention_bias is True, must be False"),
    "wide heads": ({"head_dim": 8}, "head_dim is 8, must be 4"),
    "activation": ({"hidden_act": "xielu"}, "hidden_act is 'xielu', must be gelu or relu or relu2 or silu"),
    "another type": ({"model_type": "mamba"}, "model_type is 'mamba', must be one of gpt2, apertus, arcee"),
    "no size": ({"hidden_size": "16"}, "hidden_size is '16', must be a positive integer"),
    "no length": ({"max_position_embeddings": None}, "max_position_embeddings is None, must be a positive integer"),
    "other layers": ({"num_hidden_layers": 3}, "model.n_layers: is 3, but"),
    "other vocabulary": ({"vocab_size": 300}, "parameters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_named(case, tmp_path):
    changes, message = REFUSED[case]
    write_folder(tmp_path / "a", weights_of("modern"), "runs/a")
    (tmp_path / "a" / "config.json").write_text(json.dumps(content(tmp_path / "a") | changes))
    with pytest.raises(UserError) as refused:
        read_folder(tmp_path / "a")
    assert message in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module", params=["modern", "transformer", "ngt"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "a"
    write_folder(path, weights_of(request.param), "runs/a")
    return path, content(path)


_EMPTY = st.sampled_from([list, dict]).map(lambda kind: kind())  # a new one each time, since the test fills dicts
JSON = st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=3) | _EMPTY


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_to_the_settings_is_one_line(folder, data):
    path, saved = folder
    damaged = json.loads(json.dumps(saved))
    for _ in range(data.draw(st.integers(1, 2))):
        section = damaged
        for name in ("settings", "rope_parameters"):
            if isinstance(section.get(name), dict) and data.draw(st.booleans()):
                section = section[name]
        key = data.draw(st.sampled_from(sorted(section) or ["x"]))
        section[key] = data.draw(JSON)
    (path / "config.json").write_text(json.dumps(damaged))
    message = str(path)
    try:
        read_folder(path)
    except UserError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("case", [case for case in STANDARD if STANDARD[case] != "apertus"], ids=str)
def test_settings_of_older_files(case, tmp_path):
    """Angles at their default, or outside rope_parameters; settings with the default of the class are left out."""
    ours = weights(case)
    write_folder(tmp_path / "a", ours, "runs/a")
    saved = content(tmp_path / "a")
    for name in ("rope_parameters", "rope_theta", "rope_scaling", "rotary_emb_base", "head_dim", "use_sliding_window"):
        saved.pop(name, None)
    (tmp_path / "a" / "config.json").write_text(json.dumps(saved))
    assert same(read_folder(tmp_path / "a"), ours)


def test_constants_of_older_files_are_skipped(tmp_path):
    write_folder(tmp_path / "a", weights_of("transformer"), "runs/a")
    path = tmp_path / "a" / "model.safetensors"
    names = ("rotary_emb.inv_freq", "bias", "masked_bias")
    constants = {f"gpt_neox.layers.0.attention.{name}": np.zeros((1, 2), np.float32) for name in names}
    safetensors.numpy.save_file(safetensors.numpy.load_file(path) | constants, path)
    assert same(read_folder(tmp_path / "a"), weights_of("transformer"))


def test_missing_blocks_are_named(tmp_path):
    write_folder(tmp_path / "a", weights_of("ngt"), "runs/a")
    path = tmp_path / "a" / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    del arrays["blocks.0.attn.gamma"]
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(UserError, match=r"a: its files do not .*: blocks\.attn\.gamma is in the blocks 1 only"):
        read_folder(tmp_path / "a")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        read_folder(tmp_path / "nowhere")
    write_folder(tmp_path / "a", weights_of("modern"), "runs/a")
    with pytest.raises(UserError, match="for a folder of transformers, give hf:DIRECTORY"):
        read_weights(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: there is no such file"):
        read_folder(tmp_path / "a")


def test_an_unknown_parameter_is_named(tmp_path):
    write_folder(tmp_path / "a", weights_of("modern"), "runs/a")
    path = tmp_path / "a" / "model.safetensors"
    arrays = safetensors.numpy.load_file(path) | {"model.layers.0.self_attn.sinks": np.zeros(4, np.float32)}
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(UserError, match=r"apertus parameter 'model\.layers\.0\.self_attn\.sinks' has no counterpart"):
        read_folder(tmp_path / "a")


def test_a_base_without_code_is_named(tmp_path, monkeypatch):
    """A base of another package, also if its settings equal those of a standard architecture."""
    monkeypatch.delitem(own._CODE, "modern")
    with pytest.raises(UserError, match=r"model\.base: is modern, for which there is no PyTorch code"):
        write_folder(tmp_path / "a", weights_of("modern"), "runs/a")
    assert not (tmp_path / "a").exists()


def test_a_folder_is_not_written_over(tmp_path):
    write_folder(tmp_path / "a", weights_of("modern"), "runs/a")
    with pytest.raises(UserError, match="is not an empty directory"):
        write_folder(tmp_path / "a", weights_of("modern"), "runs/a")


def trained(kind):
    if kind == "bytes":
        return byte_tokenizer()
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    return train_tokenizer(sentences(300), TokenizerConfig(kind=kind, vocab_size=400))


@pytest.fixture(scope="module", params=["bpe", "unigram", "wordpiece", "sentencepiece", "bytes"])
def pair(request):
    """A tokenizer of each kind, and its tokenizer.json as transformers loads it."""
    ours = trained(request.param)
    files = tokenizer_files(ours, 32)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    theirs.encode_special_tokens = files["tokenizer_config.json"]["split_special_tokens"]
    return ours, theirs


ALPHABET = st.sampled_from(
    [*"abc the", "\n", "\t", "é", "日", "😀", "\u2581", "\u0301", "\x00", "<eos>", "<unk>", "<0x41>"]
)


@settings(max_examples=60, deadline=None)
@given(text=st.lists(ALPHABET | st.characters(exclude_categories=["Cs"]), max_size=30).map("".join))
def test_tokenizers_have_the_same_ids(pair, text):
    ours, theirs = pair
    ids = ours.encode(text)
    assert theirs.encode(text).ids == [ours.bos_id, *ids]
    assert theirs.encode(text, add_special_tokens=False).ids == ids
    assert theirs.decode(ids) == ours.decode(ids)


def test_special_tokens_of_transformers(pair):
    ours, theirs = pair
    for role, name in ours.names.items():
        assert theirs.token_to_id(name) == getattr(ours, f"{role}_id")


def test_a_prebuilt_tokenizer_keeps_its_names(tmp_path):
    """Special tokens that text could give, no pad token, and a post-processor for another use."""
    vocabulary = {"[EOS]": 0, "the": 1, "sun": 2, "[UNK]": 3}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.post_processor = tokenizers.processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 0)])
    library.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path / "tokenizer.json", TokenizerConfig(eos_token="[EOS]"))
    files = tokenizer_files(ours, 32)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    theirs.encode_special_tokens = True
    assert theirs.encode("the sun").ids == [0, 1, 2]
    assert 0 not in theirs.encode("sun [EOS]", add_special_tokens=False).ids
    roles = {name: files["tokenizer_config.json"][f"{name}_token"] for name in ("pad", "bos", "eos", "unk")}
    assert roles == {"pad": "[EOS]", "bos": "[EOS]", "eos": "[EOS]", "unk": "[UNK]"}
