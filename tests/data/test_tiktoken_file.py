"""Files of tiktoken have the ids of tiktoken; one that is damaged, or a pattern that means something else, is named."""

import base64
import itertools

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psann_jax.config import ConfigError, TokenizerConfig
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.utils.errors import UserError
from tests.support.tiny import sentences

# As tiktoken 0.14 writes them.
PATTERNS = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"""
    r"""|\s*[\r\n]|\s+(?!\S)|\s""",
    "o200k": "|".join(
        [
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""",
            r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
            r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""",
            r"""\s+""",
        ]
    ),
}
TEXT = "It's the SUN, we'LL run 12345 times!\r\n\n  Ünïcode 日本 x  \n\t é"


def ranks():
    """Ranks of a BPE trained on a little text, and a token that no merge makes."""
    trained = train_tokenizer([*sentences(200), TEXT * 20], TokenizerConfig(vocab_size=420))
    pieces = [trained.piece(i) for i in range(4, trained.vocab_size)]
    return {token: i for i, token in enumerate(sorted(pieces, key=lambda token: (len(token) > 1,)))} | {b" times": 500}


RANKS = ranks()


def written(path, found=RANKS):
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in found.items()))
    return path


def reference(text, pattern):
    """What tiktoken does: a part that is a token, or else the merges of the lowest rank, the first of equal ones."""
    ids = []
    for part in regex.findall(pattern, text):
        parts = [bytes([byte]) for byte in part.encode()]
        if part.encode() in RANKS:
            parts = [part.encode()]
        while True:
            pairs = [(RANKS[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in RANKS]
            if not pairs:
                break
            i = min(pairs)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [RANKS[part] for part in parts]
    return ids


@pytest.fixture(scope="module", params=PATTERNS)
def loaded(request, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("tiktoken") / "small.tiktoken")
    return Tokenizer.load(path, TokenizerConfig(path=str(path), pattern=request.param)), PATTERNS[request.param]


WORDS = st.sampled_from(
    [
        "the",
        " sun",
        "It's",
        "'LL",
        "12",
        "3",
        "\n",
        "\r\n",
        "  ",
        "\t",
        "é",
        "日",
        "😀",
        " times",
        "<eos>",
        "\u0301",
        "ſ",
        "'\u017f",
    ]
)


@settings(max_examples=150, deadline=None)
@example(text="\n\t")  # white space at the end of a text is one part in cl100k, elsewhere it ends at a newline
@example(text="a\n\tb \n \n\t")
@given(text=st.lists(WORDS | st.characters(exclude_categories=["Cs", "Cn"]), max_size=25).map("".join))
def test_ids_are_those_of_tiktoken(loaded, text):
    tokenizer, pattern = loaded
    ids = tokenizer.encode(text)
    assert ids == reference(text, regex.compile(pattern, regex.VERSION1))
    assert tokenizer.decode(ids) == text


def test_ids_equal_those_of_the_package(loaded):
    tiktoken = pytest.importorskip("tiktoken", reason="needs tiktoken; pip install tiktoken")
    tokenizer, pattern = loaded
    theirs = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=RANKS, special_tokens={"<eos>": 501})
    for text in (TEXT, *sentences(100), "".join(map(chr, range(0x20, 0x3000))), " times", "'s 'S '\u017f", "a \n b\n"):
        assert tokenizer.encode(text) == theirs.encode_ordinary(text)


def test_special_tokens_follow_the_last_rank(tmp_path):
    path = written(tmp_path / "r50k_base.tiktoken")  # whose pattern is known by its name
    tokenizer = Tokenizer.load(path, TokenizerConfig(eos_token="<|endoftext|>"))
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.vocab_size) == (501, 502, 503, 504)
    assert 501 not in tokenizer.encode("a <|endoftext|> b")
    again = Tokenizer.from_bytes(tokenizer.to_bytes())
    assert again.encode(TEXT) == tokenizer.encode(TEXT)


def test_one_special_token_for_all_roles_is_one_id(tmp_path):
    names = dict.fromkeys(("eos_token", "bos_token", "pad_token"), "<|endoftext|>")
    tokenizer = Tokenizer.load(written(tmp_path / "r50k_base.tiktoken"), TokenizerConfig(**names))
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (501, 501, 502)


def test_a_pattern_of_ones_own(tmp_path):
    path = written(tmp_path / "small.tiktoken")
    tokenizer = Tokenizer.load(path, TokenizerConfig(path=str(path), pattern=r"^x|\s+$|[^\s$]+|\s"))
    # Only the beginning and the end of the text match, not those of its lines.
    assert tokenizer.decode(tokenizer.encode("x\nx  \n\n")) == "x\nx  \n\n"
    assert len(tokenizer.encode("  \n  ")) == len(reference("  \n  ", r"\s+"))


def test_what_cannot_be_used_is_named(tmp_path):
    path = written(tmp_path / "small.tiktoken")
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.pattern: is missing for .*small\.tiktoken; must be gpt2"):
        Tokenizer.load(path)
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.pattern: has \{\.\.\.\}\+"):
        Tokenizer.load(path, TokenizerConfig(path=str(path), pattern=PATTERNS["cl100k"]))
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.pattern: '\(' cannot be used"):
        Tokenizer.load(path, TokenizerConfig(path=str(path), pattern="("))
    with pytest.raises(ConfigError, match="has an ordinary token 'the'"):
        Tokenizer.load(path, TokenizerConfig(path=str(path), pattern="gpt2", eos_token="the"))
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.pattern: .* unless data\.tokenizer\.path is"):
        TokenizerConfig(pattern="gpt2").check("data.tokenizer")
    path.write_bytes(path.read_bytes() + b"no rank\n")
    with pytest.raises(UserError, match="is not a tiktoken file"):
        Tokenizer.load(path, TokenizerConfig(path=str(path), pattern="gpt2"))
    for damaged in ({b"a": 0}, RANKS | {b"zz": 3}):
        with pytest.raises(UserError, match="is not a complete tiktoken file"):
            Tokenizer.load(written(path, damaged), TokenizerConfig(path=str(path), pattern="gpt2"))
