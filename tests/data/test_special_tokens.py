"""Ids of special tokens never come from text, whatever the file of a prebuilt tokenizer says."""

import json

import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from psann_jax.config import ConfigError, TokenizerConfig
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.utils.errors import UserError

NAMES = ("<pad>", "<s>", "</s>", "<unk>")
LETTERS = [*"abcdef<>/|▁ spadunk"]
PIECES = [*NAMES, "<mask>", *dict.fromkeys(LETTERS), "ab", "cd", "</"]
texts = st.lists(st.sampled_from([*NAMES, "<mask>", "＜/s＞", "▁", " ", "ab", "\n", "é", "</s", ">", "a"])).map("".join)


def unigram(**kwargs) -> tokenizers.Tokenizer:
    scores = [(piece, -1.0 - i / 10) for i, piece in enumerate(PIECES)]
    return tokenizers.Tokenizer(models.Unigram(scores, unk_id=3, **kwargs))


def bpe(**kwargs) -> tokenizers.Tokenizer:
    words = [*NAMES, "<mask>"]
    prefixes = dict.fromkeys(word[:n] for word in words for n in range(2, len(word)))
    pieces = [*words, *dict.fromkeys([*LETTERS, "m", "k"]), *(p for p in prefixes if p not in words), "</s>a", "ab"]
    merges = [(p[:-1], p[-1]) for p in (*prefixes, *words) if len(p) > 1] + [("</s>", "a"), ("a", "b")]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", **kwargs))


def word_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordLevel({p: i for i, p in enumerate(PIECES)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def wordpiece() -> tokenizers.Tokenizer:
    pieces = [*PIECES, *(f"##{letter}" for letter in dict.fromkeys(LETTERS)), "##</s>"]
    made = tokenizers.Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def added(made: tokenizers.Tokenizer, special: bool) -> tokenizers.Tokenizer:
    made.add_tokens([AddedToken(name, special=special, normalized=False) for name in (*NAMES, "<mask>")])
    return made


def changed(made: tokenizers.Tokenizer, **parts) -> tokenizers.Tokenizer:
    for name, part in parts.items():
        setattr(made, name, part)
    return made


BYTE_LEVEL = {piece: i for i, piece in enumerate([*NAMES, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
FILES = {
    "unigram": unigram,
    "unigram, normalised": lambda: changed(unigram(), normalizer=normalizers.NFKC()),
    "unigram, metaspace": lambda: changed(
        unigram(), pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()
    ),
    "unigram, added": lambda: added(unigram(), special=False),
    "unigram, special": lambda: added(unigram(), special=True),
    "bpe": bpe,
    "bpe, ignore_merges": lambda: bpe(ignore_merges=True),
    "bpe, added": lambda: added(bpe(), special=False),
    "bpe, special": lambda: added(bpe(), special=True),
    "byte-level bpe, added": lambda: added(
        changed(tokenizers.Tokenizer(models.BPE(BYTE_LEVEL, [])), pre_tokenizer=pre_tokenizers.ByteLevel()), False
    ),
    "wordlevel": word_level,
    "wordlevel, added": lambda: added(word_level(), special=False),
    "wordpiece": wordpiece,
    "wordpiece, added": lambda: added(wordpiece(), special=False),
}


@pytest.fixture(params=FILES)
def prebuilt(request, tmp_path):
    FILES[request.param]().save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_special_tokens_never_come_from_text(prebuilt):
    tokenizer = Tokenizer.load(prebuilt)
    plain = tokenizers.Tokenizer.from_file(str(prebuilt))
    plain.encode_special_tokens = True
    never = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    assert [tokenizer.piece(i) for i in sorted(never)] == [b"<pad>", b"<s>", b"</s>"]
    restored = Tokenizer.from_bytes(tokenizer.to_bytes())

    @settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
    @given(texts)
    @example("a</s>b")
    @example("<pad><s></s><unk>")
    def check(text):
        ids = tokenizer.encode(text)
        assert never.isdisjoint(ids)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert restored.encode(text) == ids
        assert tokenizer.encode_batch(["ab", text]) == [tokenizer.encode("ab"), ids]
        raw = plain.encode(text, add_special_tokens=False).ids
        if never.isdisjoint(raw) and not any(name in text for name in (*NAMES, "<mask>")):
            assert ids == raw

    check()


@pytest.mark.parametrize("kind", ["unigram", "unigram, added", "bpe", "bpe, ignore_merges", "byte-level bpe, added"])
def test_names_of_special_tokens_are_decoded_as_they_were(kind, tmp_path):
    made = FILES[kind]()
    if kind.startswith("byte"):
        made.decoder = decoders.ByteLevel()
    else:
        made.decoder = decoders.Fuse()
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    for text in ("</s>", "ab<s>cd", "<unk>a<pad>"):
        assert tokenizer.decode(tokenizer.encode(text)).strip() == text


def model_of(kind: str, piece_type: str, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2

    lines = ["abcab dede </s> fade <s> cab", "a bad cafe </s>"] * 20
    prefix = tmp_path / "made"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=24, model_type=kind, hard_vocab_limit=False,
        byte_fallback=False, minloglevel=2,
    )  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto.FromString(prefix.with_suffix(".model").read_bytes())
    for piece in model.pieces:
        if piece.piece in ("<s>", "</s>"):
            piece.type = getattr(piece, piece_type)
            piece.score = 1.0
    path = tmp_path / "m.model"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("piece_type", ["NORMAL", "USER_DEFINED", "CONTROL"])
def test_sentencepiece_models(kind, piece_type, tmp_path):
    tokenizer = Tokenizer.load(model_of(kind, piece_type, tmp_path))
    never = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}

    @settings(deadline=None, max_examples=50)
    @given(texts)
    @example("a </s> b")
    def check(text):
        assert never.isdisjoint(tokenizer.encode(text))

    check()


@pytest.mark.parametrize(
    ("made", "config", "name"),
    [
        (unigram, {"eos_token": "a"}, "eos"),
        (lambda: changed(unigram(), normalizer=normalizers.Lowercase()), {"bos_token": "b"}, "bos"),
        (lambda: tokenizers.Tokenizer(models.BPE(BYTE_LEVEL, [])), {"pad_token": "a"}, "pad"),
        (lambda: tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>")), {}, "eos"),
        (lambda: tokenizers.Tokenizer(models.Unigram([("</s>", 0.0), ("a", -1.0)], unk_id=0)), {}, "eos"),
    ],
)
def test_files_that_make_special_tokens_out_of_ordinary_text_are_refused(made, config, name, tmp_path):
    path = tmp_path / "tokenizer.json"
    made().save(str(path))
    with pytest.raises(ConfigError, match=rf"^data.tokenizer.{name}_token: .* encodes ordinary text such as") as error:
        Tokenizer.load(path, TokenizerConfig(path=str(path), **config))
    assert "\n" not in str(error.value)


def test_text_that_a_tokenizer_cannot_encode_is_an_error_of_one_line(tmp_path):
    made = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="<unk>"))
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert tokenizer.encode("a") == [1]
    with pytest.raises(UserError, match=r"^data.tokenizer.path: the tokenizer cannot encode the text: "):
        tokenizer.encode("b")


def test_a_byte_order_mark_and_missing_entries(tmp_path):
    path = tmp_path / "tokenizer.json"
    unigram().save(str(path))
    content = json.loads(path.read_text())
    short = {name: content[name] for name in ("version", "added_tokens", "model")}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(short).encode())
    assert Tokenizer.load(path).encode("ab")


@pytest.mark.parametrize("vocab", [{}, []])
def test_a_tokenizer_without_tokens_is_refused(vocab, tmp_path):
    kind = models.BPE(vocab, []) if vocab == {} else models.Unigram(vocab)
    made = tokenizers.Tokenizer(kind)
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"^data.tokenizer.path: .* is neither"):
        Tokenizer.load(tmp_path / "tokenizer.json")
