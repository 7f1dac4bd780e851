"""Records that are prompts with completions, or dialogues: their documents, and which tokens are targets."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import ConfigError, DataConfig, TokenizerConfig
from psann_jax.data.encoding import encode_documents
from psann_jax.data.loader import load_text
from psann_jax.data.records import MarkedText, Message, Records
from psann_jax.data.sources import open_source
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.data.windows import DocumentRows, PackedWindows, is_target
from psann_jax.utils.errors import UserError
from tests.support.damage import flip_bit
from tests.support.tiny import sentences, write_text

PAIRS = [{"q": f"{text}?", "a": f" {text[::-1]}."} for text in sentences(120)]
BYTES = byte_tokenizer()
QA = {"prompt_field": "q", "completion_field": "a"}


def dialogue(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config_of(path, **changes):
    tokenizer = TokenizerConfig(kind="bytes")
    given = {"sources": (str(path),), "tokenizer": tokenizer, "max_length": 32, "cache_dir": str(path) + ".cache"}
    config = DataConfig(**{**given, "valid_fraction": 0.1, **changes})
    config.check("data")
    return config


def documents(path, **changes):
    return list(open_source(str(path), config_of(path, **changes)).documents())


def targets(windows):
    """The text of the targets of windows, in their order."""
    found = b""
    for i in range(len(windows)):
        window = windows[i]
        ids = window["tokens"][1:][is_target(window)]
        found += b"".join(b"$" if j == BYTES.eos_id else BYTES.piece(int(j)) for j in ids)
    return found.decode(errors="replace")


@pytest.mark.parametrize(
    ("settings", "record", "parts"),
    [
        (QA, {"q": "1+1=", "a": "2"}, [("1+1=", False), ("2", True)]),
        (QA, {"q": "", "a": "2"}, [("", False), ("2", True)]),
        (QA, {"q": "1", "a": None}, [("1", False), ("", True)]),
        (
            {**QA, "template": "Q: {prompt}\nA: {completion}!"},
            {"q": "{completion}", "a": "{prompt}"},
            [("Q: {completion}\nA: ", False), ("{prompt}!", True)],
        ),
        (
            {"messages_field": "m"},
            {"m": dialogue("hi", "ho", "{role}", "b")},
            [
                ("<|user|>\nhi\n<|assistant|>\n", False),
                ("ho\n", True),
                ("<|user|>\n{role}\n<|assistant|>\n", False),
                ("b\n", True),
            ],
        ),
        (
            {"messages_field": "m", "template": "[{role}] {content}</>"},
            {"m": {"role": ["system", "assistant"], "content": [b"s", b"a"]}},
            [("[system] s</>[assistant] ", False), ("a</>", True)],
        ),
    ],
)
def test_parts_of_a_record(settings, record, parts):
    config = DataConfig(sources=("x",), **settings)
    config.check("data")
    found = Records.of(config).document(record, "x")
    assert list(found.parts) == parts
    assert found == "".join(text for text, _ in parts)


ROLES = ("system", "user", "assistant", "", "rôle")
TEMPLATES = ("", "[{role}] {content}</>", "{role}: {content}", "{role}{content}\n\n")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ROLES), st.text(max_size=8)), min_size=1), st.sampled_from(TEMPLATES))
def test_the_prompt_of_a_chat_has_the_tokens_of_the_training(messages, template):
    """The tokens before each message of the assistant are those of the document up to there."""
    records = Records.of(DataConfig(sources=("x",), messages_field="m", template=template))
    whole = [Message(*pair) for pair in [*messages, ("assistant", "!")]]
    document = records.document({"m": [message._asdict() for message in whole]}, "x")
    (encoded,) = encode_documents([document], BYTES)
    for i, message in enumerate(whole):
        if message.role == "assistant":
            (prompt,) = encode_documents([records.chat_prompt(whole[:i])], BYTES)
            n = len(prompt.ids) - 1
            assert encoded.ids[:n] == prompt.ids[:n]
            rest = BYTES.encode(message.content + records.ending)
            assert encoded.ids[n : n + len(rest)] == rest
            assert all(encoded.scored[n : n + len(rest)])


@pytest.mark.parametrize(
    ("settings", "record", "message"),
    [
        (QA, {"q": "1"}, r"^data.completion_field: x has no field 'a'; it has 'q'$"),
        (QA, {"q": 1, "a": "2"}, r"^data.prompt_field: x: 'q' holds int, not text$"),
        ({"messages_field": "m"}, {"q": "1"}, r"^data.messages_field: x has no field 'm'; it has 'q'$"),
        ({"messages_field": "m"}, {"m": "hello"}, r"^data.messages_field: x: 'm' holds str, not a list of messages$"),
        ({"messages_field": "m"}, {"m": ["a"]}, r"^data.messages_field: x: 'm' holds str, not messages with role and"),
        (
            {"messages_field": "m"},
            {"m": [{"role": "user"}]},
            r"^data.messages_field: x: message 1 has no field 'con",
        ),
        (
            {"messages_field": "m"},
            {"m": {"role": ["user", "assistant"], "content": ["a"]}},
            r"^data.messages_field: x: 'm' has 2 roles, but 1 contents$",
        ),
        (
            {"messages_field": "m"},
            {"m": {"role": "user", "content": "abcd"}},
            r"^data.messages_field: x: 'm' holds one role of type str, not a list of messages$",
        ),
    ],
)
def test_records_that_do_not_fit_are_refused(settings, record, message):
    with pytest.raises(UserError, match=message):
        Records.of(DataConfig(**settings)).document(record, "x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_field": "q"}, r'^data.completion_field: is "", but data.prompt_field needs it'),
        ({"completion_field": "q"}, r'^data.prompt_field: is "", but data.completion_field needs it'),
        ({"prompt_field": "q", "completion_field": "q"}, r"^data.completion_field: is 'q', as data.prompt_field"),
        ({**QA, "messages_field": "m"}, r"^data.prompt_field: has no effect with data.messages_field"),
        ({**QA, "text_field": "m"}, r"^data.text_field: has no effect with data.prompt_field"),
        ({"messages_field": "m", "document": "article"}, r"^data.document: cannot be article with data.messages_field"),
        ({"template": "{prompt}{completion}"}, r"^data.template: has no effect without data.prompt_field or data.mess"),
        ({**QA, "template": "{completion}{prompt}"}, r"^data.template: is .* must have {prompt} and after it {compl"),
        ({**QA, "template": "{prompt}"}, r"^data.template: is '{prompt}', must have"),
        ({"messages_field": "m", "template": "{role}{content}{content}"}, r"^data.template: is .*{content}, each once"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(sources=("x",), **settings).check("data")


def test_sources_without_records_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^data.prompt_field: has no effect on sources without records"):
        load_text(config_of(write_text(tmp_path / "a.txt"), **QA), progress=False)


def test_jsonl_and_parquet_give_the_same_documents(tmp_path):
    records = [{"id": i, "m": dialogue(*sentences(4, i)), **PAIRS[i]} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet", row_group_size=2)
    write_jsonl(tmp_path / "a.jsonl", records)
    for fields in (QA, {"messages_field": "m"}):
        found = [documents(tmp_path / name, **fields) for name in ("a.jsonl", "a.parquet")]
        assert found[0] == found[1]
        assert [a.parts for a in found[0]] == [b.parts for b in found[1]]
    with pytest.raises(UserError, match=r"^data.completion_field: .*a.parquet has no field 'x'; it has 'id', 'm'"):
        documents(tmp_path / "a.parquet", prompt_field="q", completion_field="x")
    for name in ("a.jsonl", "a.parquet"):  # "text" is also the default of data.text_field
        with pytest.raises(UserError, match=rf"^data.prompt_field: .*{name}.* has no field 'text'"):
            documents(tmp_path / name, prompt_field="text", completion_field="a")


parts_lists = st.lists(st.tuples(st.text(max_size=8).filter(lambda s: s.isprintable()), st.booleans()), min_size=1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.text(max_size=8), parts_lists.map(MarkedText)), min_size=1, max_size=5))
def test_tokens_are_targets_with_their_part(texts):
    for text, document in zip(texts, encode_documents(texts, BYTES), strict=True):
        assert BYTES.decode(document.ids) == text
        if isinstance(text, MarkedText):
            expected = "".join(part for part, is_target in text.parts if is_target)
            ids = [i for i, scored in zip(document.ids, document.scored, strict=True) if scored]
            assert BYTES.decode(ids) == expected
            assert (ids[-1:] == [BYTES.eos_id]) == text.parts[-1][1]
        else:
            assert document.scored is None


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("stride", [None, 5])
def test_windows_count_each_token_of_a_completion_once(tmp_path, pack, stride):
    config = config_of(
        write_jsonl(tmp_path / "a.jsonl", PAIRS) and tmp_path / "a.jsonl", **QA, pack=pack, max_length=16
    )
    text = load_text(config, progress=False)
    for shard in (text._prepared.train, text._prepared.valid):
        windows = (
            PackedWindows(shard, 16, BYTES.pad_id, keep_last=True, stride=stride)
            if pack
            else DocumentRows(shard, 16, BYTES.pad_id, stride=stride)
        )
        ids = [shard.tokens_N[a:b] for a, b in zip(shard.offsets[:-1], shard.offsets[1:], strict=True)]
        found = targets(windows)
        expected = "".join(pair["a"] + "$" for pair in (by_text()[BYTES.decode(document)] for document in ids))
        assert found == expected
    some = text.with_stride(5) if stride else text
    assert some.evaluated_bytes() == sum(len(a) for a in targets(some.valid_windows).replace("$", ""))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_bytes_of_completions_do_not_depend_on_how_a_tokenizer_writes_spaces(tmp_path, kind):
    pairs = [{"q": f"{i} ", "a": " ".join(sentences(3, i))} for i in range(400)]
    path = write_jsonl(tmp_path / "a.jsonl", pairs)
    kept = "".join(pair["q"] + pair["a"] for pair in pairs)
    data = config_of(path, **QA, tokenizer=TokenizerConfig(kind=kind, vocab_size=300))
    text = load_text(data, progress=False)
    shard = text._prepared.valid
    completions = shard.text_bytes * sum(len(pair["a"]) for pair in pairs) / len(kept)
    assert text.evaluated_bytes() == pytest.approx(completions, rel=0.03)


def by_text():
    return {pair["q"] + pair["a"]: pair for pair in PAIRS}


def test_batches_are_the_same_for_a_step_and_a_damaged_mark_is_found(tmp_path):
    config = config_of(write_jsonl(tmp_path / "a.jsonl", PAIRS), **QA)
    text = load_text(config, progress=False)
    first = [next(text.train_batches(seed=1, batch_size=4, start_step=3)) for _ in range(2)]
    assert first[0].keys() == {"tokens", "segment_ids", "positions", "scored"}
    for name, array in first[0].items():
        np.testing.assert_array_equal(array, first[1][name])
    assert 0 < is_target(first[0]).mean() < 0.7
    (file,) = (tmp_path / "a.jsonl.cache").glob("shards-*/*.shard")
    flip_bit(file, -70)  # in the marks, before the padding
    with pytest.raises(UserError, match="is damaged or missing"):
        targets(load_text(config, progress=False).valid_windows)


def test_validation_text_without_targets_is_refused(tmp_path):
    records = [{"m": dialogue(text)} for text in sentences(60)]
    config = config_of(write_jsonl(tmp_path / "a.jsonl", records), messages_field="m", max_length=16)
    with pytest.raises(UserError, match=r"^data.messages_field: no message of a validation document is of the assist"):
        load_text(config, progress=False)


def test_training_text_without_targets_is_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"m": dialogue(text)} for text in sentences(60)])
    write_jsonl(tmp_path / "b.jsonl", [{"m": dialogue(text, "yes")} for text in "ab"])
    valid = {"valid_sources": (str(tmp_path / "b.jsonl"),), "valid_fraction": 0.01}
    config = config_of(tmp_path / "a.jsonl", messages_field="m", max_length=16, **valid)
    with pytest.raises(UserError, match=r"^data.messages_field: no message of a training document is of the assistant"):
        load_text(config, progress=False)


def test_an_evaluation_without_targets_is_refused(tmp_path):
    """It would divide by their number, or by that of their bytes."""
    write_jsonl(tmp_path / "a.jsonl", [{"q": f"{text} {i}", "a": ""} for i, text in enumerate(sentences(60))])
    text = load_text(config_of(tmp_path / "a.jsonl", **QA, max_length=16), progress=False)
    with pytest.raises(UserError, match=r"^data.completion_field: all completions of the validation documents are emp"):
        text.valid_batches(batch_size=1)
    write_jsonl(tmp_path / "b.jsonl", [{"q": "a long question " * 9, "a": "yes"}] * 3)
    valid = {"valid_sources": (str(tmp_path / "b.jsonl"),), "valid_fraction": 0.01}
    text = load_text(config_of(tmp_path / "a.jsonl", **QA, max_length=16, **valid), progress=False)
    with pytest.raises(UserError, match=r"^eval.max_tokens: is 32, but the first window of the validation text has n"):
        text.valid_batches(batch_size=1, max_tokens=32)
    assert text.valid_batches(batch_size=1) is not None


def test_text_and_records_may_be_mixed(tmp_path):
    """All of an ordinary text is a target."""
    write_text(tmp_path / "b.txt", n_lines=30)
    write_jsonl(tmp_path / "a.jsonl", PAIRS)
    sources = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt"))
    config = config_of(tmp_path / "a.jsonl", **QA, sources=sources, weights=(1.0, 2.0), max_length=16)
    text = load_text(config, progress=False)
    pairs, plain = text._train_shards()
    assert 0 < np.mean(np.asarray(pairs.scored_N)) < 0.7
    assert np.asarray(plain.scored_N).all()
    assert "scored" in next(text.train_batches(seed=1, batch_size=4))


def test_ordinary_text_is_prepared_as_before(tmp_path):
    """The fingerprint of versions before there were marks."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in sentences(20)])
    config = config_of(tmp_path / "a.jsonl", max_length=16)
    text = load_text(config, progress=False)
    assert text.fingerprint == FINGERPRINT
    (file,) = (tmp_path / "a.jsonl.cache").glob("shards-*/*.shard")
    assert b"has_scored" not in file.read_bytes()


FINGERPRINT = "2-35c50a323f4f10bd4b4a"
