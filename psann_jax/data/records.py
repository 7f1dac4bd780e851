"""How records, of .jsonl, .parquet, tfds: and hf: sources, become documents.

A document is the text of one field, or a template filled in from a prompt and its completion or from the messages of a
dialogue. Of the latter only the completion, or what the assistant says, is a target of the loss.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from psann_jax.config import DataConfig
from psann_jax.config.data import COMPLETION, CONTENT, PROMPT, ROLE
from psann_jax.utils.errors import UserError

RECORD_SETTINGS = ("text_field", "prompt_field", "completion_field", "messages_field", "template")
ASSISTANT = "assistant"  # the role whose messages are targets


class MarkedText(str):
    """A text of which only some parts are targets of the loss.

    Attributes:
      parts: pairs of a text and whether it is a target, which one after another are the whole text.
    """

    parts: tuple[tuple[str, bool], ...]

    def __new__(cls, parts: Iterable[tuple[str, bool]]) -> "MarkedText":
        """Joins parts; neighbours that are both targets, or both not, become one."""
        joined: list[tuple[str, bool]] = []
        for text, is_target in parts:
            before = joined.pop()[0] if joined and joined[-1][1] == is_target else ""
            joined.append((before + text, is_target))
        made = super().__new__(cls, "".join(text for text, _ in joined))
        made.parts = tuple(joined)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return MarkedText, (self.parts,)


def parts_of(text: str) -> tuple[tuple[str, bool], ...]:
    """Returns the parts of a `MarkedText`, or an ordinary text as one target."""
    return text.parts if isinstance(text, MarkedText) else ((text, True),)


class Message(NamedTuple):
    """One message of a dialogue."""

    role: str
    content: str


@dataclass(frozen=True)
class Records:
    """Which fields of a record are its document; the attributes are the settings of `DataConfig`."""

    text_field: str = "text"
    prompt_field: str = ""
    completion_field: str = ""
    messages_field: str = ""
    template: str = ""

    @classmethod
    def of(cls, config: DataConfig) -> "Records":
        """Returns those of a config."""
        given = {name: getattr(config, name) for name in RECORD_SETTINGS}
        return cls(**given | {"template": config.record_template})

    @property
    def _settings(self) -> tuple[str, ...]:
        """The settings that name the fields that are read."""
        if self.messages_field:
            return ("messages_field",)
        return ("prompt_field", "completion_field") if self.prompt_field else ("text_field",)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are read."""
        return tuple(getattr(self, setting) for setting in self._settings)

    @property
    def identity(self) -> Any:
        """What of the settings affects the documents, JSON-like; for fingerprints."""
        return [*self.names, self.template] if self.template else self.text_field

    def missing(self, names: Iterable[str], where: object) -> None:
        """Raises UserError, which says where, unless all fields are among `names`."""
        record = dict.fromkeys(names, "")
        for setting in self._settings:
            _value(record, getattr(self, setting), setting, where)

    def document(self, record: Mapping[str, Any], where: object) -> str:
        """Returns the document of a record, "" if it has none.

        Args:
          record: field names -> values.
          where: str(where) names the file and line in error messages.

        Raises:
          UserError: the record lacks a field, or one does not hold text or messages.
        """
        if self.messages_field:
            return self._dialogue(_value(record, self.messages_field, "messages_field", where), where)
        if not self.prompt_field:
            return record_text(record, self.text_field, where)
        prompt = record_text(record, self.prompt_field, where, "prompt_field")
        completion = record_text(record, self.completion_field, where, "completion_field")
        if not (prompt + completion).strip():
            return ""
        head, _, rest = self.template.partition(COMPLETION)
        return MarkedText([(_fill(head, PROMPT, prompt), False), (completion + rest, True)])

    def _dialogue(self, messages: Any, where: object) -> str:
        """Returns the document of a list of messages, or of a dict of lists, as `datasets` and tfds may give it."""
        field = f"data.messages_field: {where}: {self.messages_field!r}"
        if isinstance(messages, Mapping) and {"role", "content"} <= messages.keys():
            messages = _as_list(messages["role"], messages["content"], field)
        if messages is None:
            return ""
        if isinstance(messages, str | bytes) or not isinstance(messages, Iterable):
            raise UserError(f"{field} holds {type(messages).__name__}, not a list of messages")
        read: list[Message] = []
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise UserError(f"{field} holds {type(message).__name__}, not messages with role and content")
            place = f"{where}: message {i + 1}"
            read.append(Message(*(record_text(message, name, place, "messages_field") for name in Message._fields)))
        return MarkedText(self._parts(read)) if any(message.content.strip() for message in read) else ""

    def _parts(self, messages: Iterable[Message]) -> Iterator[tuple[str, bool]]:
        for role, content in messages:
            yield self.heading(role), False
            yield content + self.ending, role == ASSISTANT

    # --- what generation needs of the template of dialogues ---------------------------------------------

    def chat_prompt(self, messages: Iterable[Message]) -> MarkedText:
        """Returns a dialogue up to the content of the assistant's next message, in the parts that training has."""
        return MarkedText([*self._parts(messages), (self.heading(ASSISTANT), False)])

    def heading(self, role: str) -> str:
        """Returns what the template writes before the content of a message."""
        return _fill(self.template.partition(CONTENT)[0], ROLE, role)

    @property
    def ending(self) -> str:
        """What the template writes after the content of a message."""
        return self.template.partition(CONTENT)[2]


def _as_list(roles: Any, contents: Any, field: str) -> list[dict[str, Any]]:
    """Returns the messages of a dict of lists; `field` begins the message of an error."""
    for name, values in (("role", roles), ("content", contents)):
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise UserError(f"{field} holds one {name} of type {type(values).__name__}, not a list of messages")
    roles, contents = list(roles), list(contents)
    if len(roles) != len(contents):
        raise UserError(f"{field} has {len(roles)} roles, but {len(contents)} contents")
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def _fill(template: str, placeholder: str, value: str) -> str:
    return value.join(template.split(placeholder))


def _value(record: Mapping[str, Any], name: str, setting: str, where: object) -> Any:
    if name not in record:
        raise UserError(
            f"data.{setting}: {where} has no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}"
        )
    return record[name]


def record_text(record: Mapping[str, Any], name: str, where: object, setting: str = "text_field") -> str:
    """Returns the text of a field of a record, "" if it is null.

    Args:
      record: field names -> values.
      name: the field, a string or UTF-8 bytes.
      where: str(where) names the file and line in error messages.
      setting: of `data`, that names the field.

    Raises:
      UserError: the record has no such field, or the field does not hold text.
    """
    value = _value(record, name, setting, where)
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as e:
            raise UserError(
                f"{where}: byte 0x{value[e.start]:02x} at offset {e.start} of {name!r} is not UTF-8"
            ) from None
    if value is not None and not isinstance(value, str):
        raise UserError(f"data.{setting}: {where}: {name!r} holds {type(value).__name__}, not text")
    return value or ""


def is_unicode(text: str) -> bool:
    """Returns whether a text can be encoded; JSON and Python strings may have unpaired surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
