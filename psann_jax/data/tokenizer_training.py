"""Training of tokenizers on a text."""

import io
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from psann_jax.config import SPECIAL_TOKENS, ConfigError, TokenizerConfig, require
from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer
from psann_jax.data.tokenizer_models import SentencePieceModel, TokenizersModel, cut_text, sentencepiece_library

_BYTES_AND_SPECIALS = 256 + len(SPECIAL_TOKENS)
# Training takes time in proportion to the square of the length of a pre-token: longer ones are cut.
MAX_PRE_TOKEN = 1000
_SENTENCEPIECE_BYTES = 4192  # its trainer drops longer sentences


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, progress: bool = True) -> Tokenizer:
    """Trains the tokenizer that `config` describes; `auto` is bpe.

    The kinds bpe and unigram work on the bytes of the text without normalisation, so ``decode(encode(text)) == text``
    for every text. wordpiece is BERT's, case-sensitive; it loses spacing and unknown words. sentencepiece is a unigram
    model with byte fallback; it loses only U+2581, which it uses for spaces.

    The same text gives the same tokenizer, except with unigram: its library does not order the pieces reproducibly.

    Args:
      texts: the training text, iterated over once.
      config: kind, vocab_size (including special tokens; the result is smaller if the text yields no more),
        min_frequency (bpe and wordpiece) and the names of the special tokens.
      progress: show progress if stderr is a terminal.

    Raises:
      ConfigError: the vocabulary is too small for the kind, or a special token could also be ordinary text.
    """
    if config.kind == "bytes":
        return byte_tokenizer()
    names = {role: getattr(config, f"{role}_token") for role in SPECIAL_TOKENS}
    if config.kind == "sentencepiece":
        return Tokenizer(_train_sentencepiece(texts, config, names), names)
    return Tokenizer(_train_tokenizers(texts, config, names, progress and sys.stderr.isatty()), names)


def _train_tokenizers(
    texts: Iterable[str], config: TokenizerConfig, names: dict[str, str], progress: bool
) -> TokenizersModel:
    model, options = _untrained(config, names)
    _refuse_ordinary_specials(model, names)
    options.update(vocab_size=config.vocab_size, special_tokens=list(names.values()), show_progress=progress)
    trainer = {
        "unigram": trainers.UnigramTrainer,
        "wordpiece": trainers.WordPieceTrainer,
    }.get(config.kind, trainers.BpeTrainer)(**options)
    pre_tokenizer = model.pre_tokenizer  # not read during training, when the library has locked the model
    chunks = (part for text in texts for chunk in cut_text(text) for part in _bounded(chunk, pre_tokenizer))
    _interruptible(chunks, lambda parts: model.train_from_iterator(parts, trainer))
    _require_vocab(config, model.get_vocab_size())
    return TokenizersModel(model.to_str())


def _bounded(text: str, pre_tokenizer: Any) -> Iterator[str]:
    """Yields a text in parts without pre-tokens of more than MAX_PRE_TOKEN characters; other pre-tokens stay whole."""
    start = 0
    # A long run of white space counts with the word after it, since pre-tokens may begin with a space.
    for run in re.finditer(rf"\S{{{MAX_PRE_TOKEN + 1},}}|\s{{{MAX_PRE_TOKEN + 1},}}\S*", text):
        for _, (first, last) in pre_tokenizer.pre_tokenize_str(run[0]):
            for cut in range(run.start() + first + MAX_PRE_TOKEN, run.start() + last, MAX_PRE_TOKEN):
                yield text[start:cut]
                start = cut
    yield text[start:]


def _interruptible(texts: Iterable[str], train: Callable[[Iterator[str]], None]) -> None:
    """Calls `train` with the texts, in a thread, because Python handles Ctrl-C only while its main thread runs."""
    failures: list[BaseException] = []
    stopped = threading.Event()

    def until_stopped() -> Iterator[str]:
        for text in texts:
            if stopped.is_set():
                raise InterruptedError
            yield text

    def run() -> None:
        try:
            train(until_stopped())
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=run, daemon=True)  # an interrupted process does not wait for it
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except BaseException:
        stopped.set()
        thread.join(1)
        raise
    if failures:
        raise failures[0]


def _untrained(config: TokenizerConfig, names: dict[str, str]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Returns the tokenizer before training and the options of its trainer."""
    if config.kind == "wordpiece":
        model = tokenizers.Tokenizer(models.WordPiece(unk_token=names["unk"]))
        model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        model.decoder = decoders.WordPiece()
        return model, {"min_frequency": config.min_frequency}
    _require_vocab(config, _BYTES_AND_SPECIALS)
    model = tokenizers.Tokenizer(models.Unigram() if config.kind == "unigram" else models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    options: dict[str, Any] = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    options |= {"unk_token": names["unk"]} if config.kind == "unigram" else {"min_frequency": config.min_frequency}
    return model, options


def _require_vocab(config: TokenizerConfig, smallest: int) -> None:
    require(
        config.vocab_size >= smallest,
        "data.tokenizer.vocab_size",
        f"is {config.vocab_size}, must be at least {smallest} for the special tokens and single characters",
    )


def _refuse_ordinary_specials(model: tokenizers.Tokenizer, names: dict[str, str]) -> None:
    """Raises ConfigError if a special token could also result from ordinary text, as a plain word could."""
    for role, name in names.items():
        text = model.decoder.decode([name.removeprefix("##")])
        if len(model.pre_tokenizer.pre_tokenize_str(text)) < 2:
            raise ConfigError(
                f"data.tokenizer.{role}_token: {name!r} could also be ordinary text; combine letters with "
                f"punctuation, as in <{role}>"
            )


def _train_sentencepiece(texts: Iterable[str], config: TokenizerConfig, names: dict[str, str]) -> SentencePieceModel:
    library = sentencepiece_library()
    _require_vocab(config, _BYTES_AND_SPECIALS)
    out = io.BytesIO()
    options: dict[str, Any] = {f"{role}_piece": name for role, name in names.items()}
    options |= {f"{role}_id": i for i, role in enumerate(SPECIAL_TOKENS)}
    options |= {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "normalization_rule_name": "identity"}
    options |= {"model_type": "unigram", "byte_fallback": True, "hard_vocab_limit": False, "minloglevel": 2}
    try:
        _interruptible(
            _sentences(texts),
            lambda sentences: library.SentencePieceTrainer.train(
                sentence_iterator=sentences, model_writer=out, vocab_size=config.vocab_size, **options
            ),
        )
    except RuntimeError as e:
        raise ConfigError(f"data.tokenizer.kind: sentencepiece cannot be trained on this text: {e}") from e
    return SentencePieceModel(out.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines():
            for part in cut_text(line, 1000):
                if len(part.encode()) <= _SENTENCEPIECE_BYTES:
                    yield part
                else:
                    yield from (part[i : i + 1000] for i in range(0, len(part), 1000))
