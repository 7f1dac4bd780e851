"""Requests for chats: JSON to checked settings, and the prompt of a dialogue in the template of a run."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from psann_jax.data.records import ASSISTANT, Message, Records
from psann_jax.serve.errors import reject
from psann_jax.serve.fields import (
    FIELDS,
    MAX_ALTERNATIVES,
    adjustment_of,
    given_fields,
    only,
    sampling_of,
    seed_of,
    shown,
    stops_of,
    usage_of,
    within,
)
from psann_jax.serve.requests import TextRequest

# Fields of OpenAI's API that are accepted with the values that change nothing only.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
}
_FIELDS = {**FIELDS, "messages": list, "max_completion_tokens": int, "logprobs": bool, "top_logprobs": int}
_ROLES = ("system", "user", ASSISTANT)  # whose messages may follow, besides the roles in the request


@dataclass(frozen=True)
class ChatRequest:
    """A request for the assistant's next message.

    Attributes:
      messages: the dialogue so far.
      request: all the rest; it has no prompt yet, because that depends on the run.
    """

    messages: tuple[Message, ...]
    request: TextRequest

    def in_template(self, records: Records) -> TextRequest:
        """Returns the request for a text that continues the dialogue in the template of a run's records.

        The text ends where the next message, of any role, begins.
        """
        roles = dict.fromkeys([*_ROLES, *(message.role for message in self.messages)])
        return dataclasses.replace(
            self.request,
            prompts=[records.chat_prompt(self.messages)],
            stop=(*self.request.stop, *(records.ending + records.heading(role) for role in roles)),
            ending=records.ending,
        )


def parse_chat(body: Any) -> ChatRequest:
    """Checks the JSON body of a request for a chat.

    Raises:
      ApiError: with status 400, if a field is unknown, has a wrong type or value, or is not supported.
    """
    given = given_fields(body, _FIELDS, _NEUTRAL, "messages")
    request = TextRequest(
        model=given["model"],
        prompts=(),
        sampling=sampling_of(given),
        adjustment=adjustment_of(given),
        max_tokens=_max_tokens(given),
        n=within("n", given.get("n", 1), 1),
        stop=stops_of(given),
        seed=seed_of(given),
        logprobs=_logprobs(given),
        stream=given.get("stream", False),
        include_usage=usage_of(given),
    )
    return ChatRequest(_messages(given["messages"]), request)


def _max_tokens(given: dict[str, Any]) -> int | None:
    values = {name: given[name] for name in ("max_completion_tokens", "max_tokens") if name in given}
    for name, value in values.items():
        within(name, value, 1)
    if len(set(values.values())) > 1:
        raise reject("max_tokens", f"is {shown(given['max_tokens'])}, but max_completion_tokens is another number")
    return next(iter(values.values()), None)


def _logprobs(given: dict[str, Any]) -> int | None:
    wanted, n = given.get("logprobs", False), given.get("top_logprobs")
    if n is None:
        return 0 if wanted else None
    within("top_logprobs", n, 0, MAX_ALTERNATIVES)
    if not wanted and n:
        raise reject("top_logprobs", "has no effect without logprobs")
    return int(n) if wanted else None


def _messages(messages: list[Any]) -> tuple[Message, ...]:
    if not messages:
        raise reject("messages", "is an empty list; give at least one message")
    return tuple(_message(i, message) for i, message in enumerate(messages, 1))


def _message(i: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise reject("messages", f"message {i} is {shown(message)}, must be an object with role and content")
    if not only(message, ("role", "content")):
        wrong = next(name for name in message if name not in ("role", "content"))
        raise reject("messages", f"message {i} has {shown(wrong)}, must have role and content only")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise reject("messages", f"the role of message {i} is {shown(role)}, must be a word such as user or assistant")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise reject("messages", f"the content of message {i} is {shown(content)}, must be a text")
    return Message(role, content)


def _is_text_part(part: Any) -> bool:
    is_text = isinstance(part, dict) and part.get("type") == "text" and only(part, ("type", "text"))
    return is_text and isinstance(part.get("text"), str)
