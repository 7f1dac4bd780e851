"""The `data` section of language models, and what the `data` sections of all families have in common."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, Self

from psann_jax.config.checks import at_least, refuse_inactive, require

_MAX_RATIO = 1e9  # between weights of sources


class DataSection(Protocol):
    """What the project asks of a family's `data` section, a frozen dataclass."""

    @property
    def max_length(self) -> int:
        """Tokens in a window, of which `train.batch_tokens` is a multiple."""

    @property
    def cache_dir(self) -> str:
        """Where prepared data are kept; "" is the user's cache directory."""

    @property
    def train_names(self) -> tuple[str, ...]:
        """Where the training data come from, for reports."""

    @property
    def valid_names(self) -> tuple[str, ...]:
        """Files or other sources of fixed validation data; () if they are split from the training data."""

    def summary(self) -> str:
        """What the data are, in a few words for reports."""

    def hold_out(self, fraction: float) -> Self:
        """Returns the section with a fraction of the training data as validation data instead of fixed ones."""

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used; `prefix` is the dotted name of the section."""


PROMPT, COMPLETION, ROLE, CONTENT = "{prompt}", "{completion}", "{role}", "{content}"  # in `DataConfig.template`


@dataclass(frozen=True)
class TokenizerConfig:
    """How text is converted to token ids."""

    # auto: the kind of path, or bpe
    kind: Literal["auto", "bpe", "unigram", "wordpiece", "sentencepiece", "bytes"] = "auto"
    # to use: a tokenizer.json, sentencepiece .model or .tiktoken file, a folder with one of the first two, or a name on
    # the Hugging Face Hub; "": train one on the text
    path: str = ""
    pattern: str = ""  # of the parts of a text, for a .tiktoken file: gpt2, cl100k, o200k or a regular expression
    vocab_size: int = 32000  # of a trained tokenizer, including special tokens
    min_frequency: int = 2  # of the pairs that a trained bpe or wordpiece tokenizer merges
    sample_bytes: int = 50_000_000  # of text, drawn at random, to train the tokenizer on; 0: all
    pad_token: str = "<pad>"  # fills rows
    bos_token: str = "<bos>"  # begins a document
    eos_token: str = "<eos>"  # ends a document
    unk_token: str = "<unk>"  # for text that the tokenizer does not know

    @property
    def is_trained(self) -> bool:
        """Whether the tokenizer is trained on the text, which may yield fewer tokens than `vocab_size`."""
        return not self.path and self.kind != "bytes"

    def check(self, prefix: str) -> None:
        """Raises ConfigError on the first value that cannot be used."""
        if self.kind == "bytes" or self.path:
            why = f"with {prefix}.path" if self.path else "with the bytes tokenizer"
            refuse_inactive(self, prefix, why, "vocab_size", "min_frequency", "sample_bytes")
        if not self.path.endswith(".tiktoken"):
            refuse_inactive(self, prefix, f"unless {prefix}.path is a .tiktoken file", "pattern")
        at_least(8, self, prefix, "vocab_size")
        at_least(1, self, prefix, "min_frequency")
        at_least(0, self, prefix, "sample_bytes")
        tokens = [getattr(self, f"{t}_token") for t in SPECIAL_TOKENS]
        require(
            all(tokens) and len(set(tokens)) == len(tokens),
            f"{prefix}.pad_token",
            f"the special tokens {tokens} must be four different, non-empty strings",
        )


SPECIAL_TOKENS = ("pad", "bos", "eos", "unk")


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it is divided into windows."""

    sources: tuple[str, ...] = ("builtin:python",)  # files, builtin:, hf: or tfds: names, see the page on data
    weights: tuple[float, ...] = ()  # fraction of each source in training, normalised; (): by size
    valid_sources: tuple[str, ...] = ()  # fixed validation text; (): a split of the sources
    valid_fraction: float = 0.01  # about this part of the documents, when valid_sources is empty
    split_seed: int = 1337  # of the hash that chooses validation documents
    text_field: str = "text"  # of .jsonl, .parquet, tfds: and hf: records
    prompt_field: str = ""  # of records of a prompt and its completion, instead of text_field
    completion_field: str = ""  # the loss counts its tokens, not those of the prompt
    messages_field: str = ""  # of records of a dialogue, instead of text_field: a list of {"role": ..., "content": ...}
    # of a document from these fields, with {prompt} and {completion}, or for each message {role} and {content}; "":
    # "{prompt}{completion}", or "<|{role}|>", a new line, "{content}" and a new line
    template: str = ""
    # what is one document in a .txt file; article: of WikiText, also in records; heading: below "# ", as in Markdown
    document: Literal["auto", "line", "paragraph", "file", "article", "heading"] = "auto"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    max_length: int = 1024  # tokens in a window
    pack: bool = True  # False: one padded document per row
    document_mask: bool = True  # False: a token attends to earlier documents in its window
    stream: bool = False  # read the text while training, without storing it; needs valid_sources
    shuffle_buffer: int = 1024  # windows of a stream that are shuffled at a time; 1: none are
    cache_dir: str = ""  # of prepared text; "": the user's cache directory
    num_workers: int = 2  # threads that read windows ahead of training

    @property
    def record_template(self) -> str:
        """The template of records; "" if a record is the text of one field."""
        if not self.prompt_field and not self.messages_field:
            return ""
        return self.template or (f"{PROMPT}{COMPLETION}" if self.prompt_field else f"<|{ROLE}|>\n{CONTENT}\n")

    @property
    def train_names(self) -> tuple[str, ...]:
        """See `DataSection`."""
        return self.sources

    @property
    def valid_names(self) -> tuple[str, ...]:
        """See `DataSection`."""
        return self.valid_sources

    def summary(self) -> str:
        """See `DataSection`."""
        return f"text from {', '.join(self.sources)}, in windows of {self.max_length} tokens"

    def hold_out(self, fraction: float) -> Self:
        """See `DataSection`."""
        require(not self.stream, "data.stream", "cannot be True with a tuning stage, which splits the training text")
        return replace(self, valid_sources=(), valid_fraction=fraction)

    def check(self, prefix: str) -> None:
        """See `DataSection`."""
        require(bool(self.sources), f"{prefix}.sources", "is empty, name at least one source")
        require(
            len(self.weights) in (0, len(self.sources)),
            f"{prefix}.weights",
            f"has {len(self.weights)} values for {len(self.sources)} sources",
        )
        require(all(w > 0 for w in self.weights), f"{prefix}.weights", f"is {self.weights}, must be positive")
        largest = _MAX_RATIO * min(self.weights, default=0.0)
        require(
            all(w <= largest for w in self.weights) and math.isfinite(sum(self.weights)),
            f"{prefix}.weights",
            f"is {self.weights}; their sum must be finite, and none more than {_MAX_RATIO:g} times another",
        )
        require(
            bool(self.valid_sources) or 0 < self.valid_fraction < 1,
            f"{prefix}.valid_fraction",
            f"is {self.valid_fraction}, must be between 0 and 1",
        )
        at_least(2, self, prefix, "max_length")
        at_least(1, self, prefix, "num_workers")
        require(
            self.pack or self.document_mask,
            f"{prefix}.document_mask",
            "cannot be False when data.pack is False, because a row then holds a single document",
        )
        self._check_records(prefix)
        self.tokenizer.check(f"{prefix}.tokenizer")
        self._check_stream(prefix)

    def _check_stream(self, prefix: str) -> None:
        at_least(1, self, prefix, "shuffle_buffer")
        if not self.stream:
            refuse_inactive(self, prefix, f"without {prefix}.stream", "shuffle_buffer")
            return
        reason = f"with {prefix}.stream"
        require(self.pack, f"{prefix}.pack", f"cannot be False {reason}")
        why = "is empty, but a stream is not split; name the validation text"
        require(bool(self.valid_sources), f"{prefix}.valid_sources", why)
        least = f"is 0, which stands for the whole text; {reason} it must be above 0"
        require(self.tokenizer.sample_bytes > 0, f"{prefix}.tokenizer.sample_bytes", least)

    def _check_records(self, prefix: str) -> None:
        pair = {"prompt_field": "completion_field", "completion_field": "prompt_field"}
        for name, other in pair.items():
            missing = bool(getattr(self, other)) and not getattr(self, name)
            require(not missing, f"{prefix}.{name}", f'is "", but {prefix}.{other} needs it; name the field')
        same = self.prompt_field == self.completion_field != ""
        require(not same, f"{prefix}.completion_field", f"is {self.completion_field!r}, as {prefix}.prompt_field")
        if self.messages_field:
            refuse_inactive(self, prefix, f"with {prefix}.messages_field", "prompt_field", "completion_field")
        template = self.record_template
        if not template:
            refuse_inactive(self, prefix, f"without {prefix}.prompt_field or {prefix}.messages_field", "template")
            return
        setting = "messages_field" if self.messages_field else "prompt_field"
        refuse_inactive(self, prefix, f"with {prefix}.{setting}", "text_field")
        require(self.document != "article", f"{prefix}.document", f"cannot be article with {prefix}.{setting}")
        first, second = (ROLE, CONTENT) if self.messages_field else (PROMPT, COMPLETION)
        places = [template.find(first), template.find(second)]
        once = template.count(first) == template.count(second) == 1 and places == sorted(places)
        require(once, f"{prefix}.template", f"is {template!r}, must have {first} and after it {second}, each once")
