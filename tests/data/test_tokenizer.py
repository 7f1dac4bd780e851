"""Tokenizers: trained, stored and prebuilt by other projects."""

import base64
import json
import sys

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from psann_jax.config import ConfigError, TokenizerConfig
from psann_jax.data import tokenizer_models
from psann_jax.data.builtin import python_documents
from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer, check_settings
from psann_jax.data.tokenizer_models import cut_text
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.utils.errors import UserError

KINDS = ("bpe", "unigram", "wordpiece", "sentencepiece", "bytes")
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
SIZE = 1000


def config_of(kind: str) -> TokenizerConfig:
    return TokenizerConfig(kind=kind) if kind == "bytes" else TokenizerConfig(kind=kind, vocab_size=SIZE)


@pytest.fixture(scope="module")
def sample() -> list[str]:
    topics = [text for text, _ in zip(python_documents(), range(40), strict=False)]
    return [*topics, "a text about <eos> and <bos> " * 20]


@pytest.fixture(scope="module")
def trained(sample) -> dict[str, Tokenizer]:
    return {kind: train_tokenizer(sample, config_of(kind), progress=False) for kind in KINDS}


any_text = st.lists(
    st.one_of(
        st.text(max_size=20), st.sampled_from([*SPECIALS, " ", "\n", "\r\n", "▁", "Ġ", "##", "the ", "\0", "'s"])
    ),
    max_size=12,
).map("".join)


# --- trained --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bytes"])
def test_decoding_restores_every_text(trained, kind):
    tokenizer = trained[kind]

    @settings(deadline=None, max_examples=200)
    @given(any_text)
    @example("<eos>")
    @example("before <bos><eos><pad><unk> after")
    @example("\U0010ffff\ud7ff\ue000 e\u0301 \u202e\u200d\ufeff")
    def check(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(4 <= i < tokenizer.vocab_size for i in ids)

    check()


def test_sentencepiece_restores_texts_except_its_space_character(trained):
    tokenizer = trained["sentencepiece"]

    @settings(deadline=None, max_examples=200)
    @given(any_text)
    @example("  two  spaces \n\n and <eos> ")
    def check(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text.replace("▁", " ")
        assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}.intersection(ids)

    check()


def test_wordpiece_keeps_words_and_case(trained):
    tokenizer = trained["wordpiece"]
    assert tokenizer.decode(tokenizer.encode("The   Assert statement\n<eos>")) == "The Assert statement < eos >"
    assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode("<eos> <pad> <bos>"))
    assert tokenizer.encode("\U0001f600") == [tokenizer.unk_id]


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_and_special_tokens(trained, kind):
    tokenizer = trained[kind]
    assert tokenizer.kind == kind
    assert tokenizer.vocab_size == (260 if kind == "bytes" else SIZE)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    ids = [1, *tokenizer.encode("An assert"), 0, 3, *tokenizer.encode(" statement"), 2]
    assert tokenizer.decode(ids) == ("An assert statement")


@pytest.mark.parametrize("kind", ["bpe", "unigram", "sentencepiece", "bytes"])
def test_the_pieces_of_a_text_join_to_its_bytes(trained, kind):
    text = " the way \u00e9\U0001f600\n<eos>\tx"
    joined = b"".join(trained[kind].piece(i) for i in trained[kind].encode(text))
    assert joined.strip(b" ") == text.strip().encode(), "sentencepiece adds a leading space"


@pytest.mark.parametrize("kind", KINDS)
def test_the_piece_of_a_special_token_is_its_name(trained, kind):
    tokenizer = trained[kind]
    assert [tokenizer.piece(i) for i in (tokenizer.bos_id, tokenizer.eos_id)] == [b"<bos>", b"<eos>"]


def test_wordpiece_marks_pieces_within_a_word(trained):
    text = "the way wayway"
    joined = b" ".join(trained["wordpiece"].piece(i) for i in trained["wordpiece"].encode(text))
    assert b" ##" in joined
    assert joined.replace(b" ##", b"") == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_equal_single_texts(trained, kind):
    texts = ["one", "", "two words", "Größe\n" * 3]
    assert trained[kind].encode_batch(texts) == [trained[kind].encode(text) for text in texts]
    assert trained[kind].encode("") == []


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_long_texts_have_the_same_ids_as_uncut(trained, sample, monkeypatch, kind):
    text = "\n".join(sample[:20]) + " \n\n  x" + "y" * 500 + "  é é\u00a0z \t w"
    whole = trained[kind].encode(text)
    monkeypatch.setattr(tokenizer_models, "_CHUNK", 37)
    monkeypatch.setattr(tokenizer_models, "cut_text", lambda text: cut_text(text, 37))
    monkeypatch.setattr(tokenizer_models, "_CHUNKS_AT_ONCE", 5)
    assert len(list(cut_text(text, 37))) > 500
    assert trained[kind].encode_batch(["short", text]) == [trained[kind].encode("short"), whole]


@settings(deadline=None, max_examples=50)
@given(any_text, st.integers(1, 8))
def test_the_parts_of_a_cut_text_join_to_the_text(text, size):
    assert "".join(cut_text(text, size)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_ids_outside_the_vocabulary_raise(trained, kind):
    for i in (-1, trained[kind].vocab_size):
        with pytest.raises(ValueError, match=f"token id {i} is outside"):
            trained[kind].decode([5, i])
        with pytest.raises(ValueError, match=f"token id {i} is outside"):
            trained[kind].piece(i)


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_incomplete_characters_are_replaced(trained, kind):
    ids = trained[kind].encode("ab\U0001f600")
    assert trained[kind].decode(ids[:-1]).startswith("ab\ufffd")


def test_training_is_reproducible_and_auto_is_bpe(trained, sample):
    for kind in ("bpe", "auto"):
        again = train_tokenizer(sample, config_of(kind), progress=False)
        assert again.fingerprint == trained["bpe"].fingerprint


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "sentencepiece"])
def test_little_text_gives_a_smaller_vocabulary(kind):
    tokenizer = train_tokenizer(["hello world, hello there"] * 5, config_of(kind), progress=False)
    assert tokenizer.vocab_size < SIZE
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_min_frequency_reduces_the_vocabulary(kind):
    texts = ["common common common rarest"]
    sizes = [
        train_tokenizer(texts, TokenizerConfig(kind=kind, min_frequency=n), progress=False).vocab_size for n in (1, 2)
    ]
    assert sizes[0] > sizes[1]


# --- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "sentencepiece"])
def test_a_vocabulary_smaller_than_the_alphabet_is_refused(sample, kind):
    config = TokenizerConfig(kind=kind, vocab_size=50)
    with pytest.raises(
        ConfigError, match=r"^data.tokenizer.vocab_size: is 50, must be at least \d+ for the special tokens"
    ):
        train_tokenizer(sample, config, progress=False)


def test_sentencepiece_training_errors_are_one_line():
    texts = ["".join(map(chr, range(0x4E00, 0x4E00 + 500)))] * 3
    with pytest.raises(
        ConfigError, match=r"^data.tokenizer.kind: sentencepiece cannot be trained .*Vocabulary size"
    ) as e:
        train_tokenizer(texts, TokenizerConfig(kind="sentencepiece", vocab_size=300), progress=False)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
@pytest.mark.parametrize("token", ["EOS", "e", "<", "7", "é"])
def test_special_tokens_that_are_ordinary_text_are_refused(kind, token):
    config = TokenizerConfig(kind=kind, vocab_size=SIZE, eos_token=token)
    with pytest.raises(ConfigError, match=r"^data.tokenizer.eos_token: .* could also be ordinary text"):
        train_tokenizer(["EOS e < 7"], config, progress=False)


@pytest.mark.parametrize("token", ["Ġthe", "Ġ<"])
def test_special_tokens_in_the_byte_alphabet_are_refused(token):
    with pytest.raises(ConfigError, match=r"^data.tokenizer.bos_token: .* could also be ordinary text"):
        train_tokenizer(["the < the <"], TokenizerConfig(vocab_size=SIZE, bos_token=token), progress=False)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("unigram", "min_frequency", 5), ("sentencepiece", "min_frequency", 5), ("bytes", "eos_token", "<end>")],
)
def test_settings_without_effect_are_refused(kind, name, value):
    check_settings(TokenizerConfig(kind=kind))
    with pytest.raises(ConfigError, match=f"^data.tokenizer.{name}: has no effect with kind {kind}"):
        check_settings(TokenizerConfig(kind=kind, **{name: value}))


def test_missing_sentencepiece_is_a_user_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"^data.tokenizer.kind: .*pip install 'psann_jax\[sentencepiece\]'"):
        train_tokenizer(["text"], config_of("sentencepiece"), progress=False)


# --- storage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_tokenizer_is_the_same(trained, tmp_path, kind):
    tokenizer, text = trained[kind], "some text, <eos> Größe \n 日本"
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert list(tmp_path.iterdir()) == [path]
    for other in (Tokenizer.from_bytes(tokenizer.to_bytes()), Tokenizer.load(path)):
        assert other.encode(text) == tokenizer.encode(text)
        assert other.decode(other.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        assert other.fingerprint == tokenizer.fingerprint
        names = ("kind", "vocab_size", "pad_id", "bos_id", "eos_id", "unk_id")
        assert [getattr(other, n) for n in names] == [getattr(tokenizer, n) for n in names]


def test_fingerprints_of_different_tokenizers_differ(trained):
    assert len({tokenizer.fingerprint for tokenizer in trained.values()}) == len(KINDS)


def test_from_bytes_refuses_other_content():
    for data in (b"{}", b"[1]", b"\xff\xfe", b"not JSON"):
        with pytest.raises(ValueError, match=r".+"):
            Tokenizer.from_bytes(data)


# --- prebuilt -------------------------------------------------------------------------------------------


def prebuilt(path, specials, **changes):
    """Saves a byte-level BPE like those that other projects publish."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(["the text of the tokenizer, the text " * 9], trainer)
    if changes.get("truncate"):
        model.enable_truncation(4)
        model.enable_padding(length=8)
    model.save(str(path))
    return path


def test_common_special_tokens_are_found(tmp_path):
    t = Tokenizer.load(prebuilt(tmp_path / "t.json", ["[PAD]", "<s>", "</s>", "[UNK]"]))
    assert (t.kind, t.pad_id, t.bos_id, t.eos_id, t.unk_id) == ("bpe", 0, 1, 2, 3)


def test_a_single_special_token_is_used_for_all_roles(tmp_path):
    t = Tokenizer.load(prebuilt(tmp_path / "t.json", ["<|endoftext|>"]))
    assert (t.pad_id, t.bos_id, t.eos_id, t.unk_id) == (0, 0, 0, None)
    text = "the <|endoftext|> text"
    assert 0 not in t.encode(text)
    assert t.decode([0, *t.encode(text), 0]) == text


def test_special_tokens_can_be_configured(tmp_path):
    path = prebuilt(tmp_path / "t.json", ["</s>", "<stop>"])
    assert Tokenizer.load(path).eos_id == 0
    assert Tokenizer.load(path, TokenizerConfig(path=str(path), eos_token="<stop>")).eos_id == 1
    with pytest.raises(ConfigError, match=r"^data.tokenizer.pad_token: .* has no token <none>"):
        Tokenizer.load(path, TokenizerConfig(path=str(path), pad_token="<none>"))


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^data.tokenizer.eos_token: .* has no token <eos> or </s> or "):
        Tokenizer.load(prebuilt(tmp_path / "t.json", ["<s>"]))


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path):
    t = Tokenizer.load(prebuilt(tmp_path / "t.json", ["</s>"], truncate=True))
    text = "the text of the tokenizer " * 5
    assert t.decode(t.encode(text)) == text
    assert t.decode(t.encode("a")) == "a"
    assert len(t.encode("a")) == 1


def test_dropout_of_merges_in_the_file_is_ignored(tmp_path):
    content = json.loads(prebuilt(tmp_path / "t.json", ["</s>"]).read_text())
    content["model"]["dropout"] = 0.5
    (tmp_path / "t.json").write_text(json.dumps(content))
    t = Tokenizer.load(tmp_path / "t.json")
    assert len({tuple(t.encode("the text of the tokenizer " * 5)) for _ in range(20)}) == 1
    plain = Tokenizer.load(prebuilt(tmp_path / "s.json", ["</s>"]))
    assert json.loads(t.to_bytes()) == json.loads(plain.to_bytes())
    assert t.had_dropout
    assert not plain.had_dropout
    content["model"]["dropout"] = 0.0
    (tmp_path / "t.json").write_text(json.dumps(content))
    zero = Tokenizer.load(tmp_path / "t.json")
    assert not zero.had_dropout
    assert b'\\"dropout\\":0.0' in zero.to_bytes(), "the fingerprint is that of earlier versions"


def test_post_processors_in_the_file_are_ignored(tmp_path):
    path = prebuilt(tmp_path / "t.json", ["<s>", "</s>"])
    content = json.loads(path.read_text())
    special = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in enumerate(("<s>", "</s>"))}
    parts = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": parts, "pair": [*parts, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": special,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    assert 0 not in Tokenizer.load(path).encode("the text")


def test_a_sentencepiece_model_file(trained, tmp_path):
    path = tmp_path / "m.model"
    path.write_bytes(base64.b64decode(json.loads(trained["sentencepiece"].to_bytes())["model"]))
    t = Tokenizer.load(path)
    assert t.kind == "sentencepiece"
    assert (t.eos_id, t.vocab_size) == (2, SIZE)
    assert t.encode("some text") == trained["sentencepiece"].encode("some text")


def test_the_configured_kind_must_match_the_file(tmp_path):
    path = prebuilt(tmp_path / "t.json", ["</s>"])
    assert Tokenizer.load(path, TokenizerConfig(kind="bpe", path=str(path))).kind == "bpe"
    with pytest.raises(ConfigError, match=r"^data.tokenizer.kind: is unigram, but .* is of kind bpe"):
        Tokenizer.load(path, TokenizerConfig(kind="unigram", path=str(path)))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"{broken", b'{"format": "psann_jax tokenizer 1"}', b"\xff" * 99]
)
def test_files_that_are_not_tokenizers(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^data.tokenizer.path: .* is neither a tokenizer.json nor") as e:
        Tokenizer.load(path)
    assert "\n" not in str(e.value)


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Tokenizer.load(tmp_path / "none.json")


def test_ids_of_the_byte_tokenizer():
    assert byte_tokenizer().encode("aé") == [ord("a") + 4, 0xC3 + 4, 0xA9 + 4]
