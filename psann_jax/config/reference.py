"""The reference of all settings, made from the dataclasses of `psann_jax.config` and the comments on their fields.

docs/settings.md is the output of ``python -m psann_jax.config.reference``.
"""

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from psann_jax.config.families import families
from psann_jax.config.schema import Config

_BAR = "\\|"  # in a cell of a table
_PAGE = """# Settings

An experiment is a config file with overrides, `--config.KEY=VALUE`; a sweep's contenders and its grid name settings in
the same way. The tables list every setting with its default, the values that it takes and its meaning. Config files
change the defaults; `psann-jax train --config=FILE --print_config` prints the settings of an experiment.

Strings are written as they are, tuples as in Python: `--config.data.sources="('a.txt', 'b.txt')"`. A setting of the
config file that a base chosen with `--config.model.base` does not have, whose value it does not allow, or that has no
effect with it, is not used, and a note says so. A setting on the command line that has no effect is an error.

This page is generated from the dataclasses in `psann_jax/config`: `python -m psann_jax.config.reference >
docs/settings.md`.
"""


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
      name: dotted.
      default: its default value.
      values: what it takes.
      meaning: the comment on its field.
    """

    name: str
    default: object
    values: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """The settings of one section, without those of sections in it.

    Attributes:
      name: dotted; "" is the top level.
      bases: those that have the section in this form; () if all have.
      description: the first paragraph of the section's docstring.
      settings: in the order of the dataclass.
    """

    name: str
    bases: tuple[str, ...]
    description: str
    settings: tuple[Setting, ...]

    @property
    def title(self) -> str:
        """Name and bases, for headings."""
        bases = f" ({', '.join(self.bases)})" if self.bases else ""
        return f"{self.name or 'experiment'}{bases}"


@functools.cache
def groups() -> tuple[Group, ...]:
    """All settings of all bases. Sections that are equal for several bases are listed once."""
    found: dict[tuple[str, Any], list[str]] = {}
    for base, family in families().items():
        for section in (*_sections("data", family.data()), *_sections("model", family.model(base=family.base))):
            path, content = section
            found.setdefault((path, type(content)), []).append(base)
    shared = [_group(path, type(content), ()) for path, content in _sections("", Config())]
    common = [group for group in shared if group.name.split(".")[0] not in ("data", "model")]
    own = [_group(path, cls, tuple(bases)) for (path, cls), bases in found.items()]
    return (*common, *sorted(own, key=lambda group: (group.name.split(".")[0], group.bases)))


def _sections(path: str, content: Any) -> Iterator[tuple[str, Any]]:
    """Yields the dotted names and contents of a section and of those in it."""
    yield path, content
    for f in dataclasses.fields(content):
        value = getattr(content, f.name)
        if dataclasses.is_dataclass(value):
            yield from _sections(f"{path}.{f.name}".lstrip("."), value)


def _group(path: str, cls: Any, bases: tuple[str, ...]) -> Group:
    hints, comments, content = typing.get_type_hints(cls), _comments(cls), cls()
    settings = tuple(
        Setting(f"{path}.{f.name}".lstrip("."), value, _values(hints[f.name]), comments.get(f.name, ""))
        for f in dataclasses.fields(cls)
        if not dataclasses.is_dataclass(value := getattr(content, f.name))
    )
    description = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    return Group(path, bases, description, settings)


def _values(hint: Any) -> str:
    """What a field takes: the words of a Literal, otherwise the type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return ", ".join("None" if arg is types.NoneType else _values(arg) for arg in args)
    return hint.__name__ if isinstance(hint, type) and origin is None else str(hint)


def _comments(cls: type) -> dict[str, str]:
    """Returns the comments on the fields of a dataclass and of its bases: at the end of the line, or above it."""
    comments: dict[str, str] = {}
    for part in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        try:
            source = textwrap.dedent(inspect.getsource(part))
        except OSError:  # a class without a source file
            continue
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        lines = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
        (definition,) = ast.parse(source).body
        for node in ast.walk(definition):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found = _comment_on(node, lines)
                if found:
                    comments[node.target.id] = found
    return comments


def _comment_on(node: ast.AnnAssign, lines: Mapping[int, tokenize.TokenInfo]) -> str:
    last = node.end_lineno or node.lineno
    if last in lines:
        return _text(lines[last])
    above = []
    line = node.lineno - 1
    while line in lines and lines[line].line.lstrip().startswith("#"):
        above.append(_text(lines[line]))
        line -= 1
    return " ".join(reversed(above))


def _text(comment: tokenize.TokenInfo) -> str:
    text = comment.string.lstrip("# ").partition("  # ")[0].strip()
    return "" if text.startswith("type: ignore") else text


# --- the page and --help --------------------------------------------------------------------------------


def render_page() -> str:
    """docs/settings.md: a table for each section."""
    parts = [_PAGE]
    for group in groups():
        rows = [
            f"| `{s.name}` | {_code(s.default)} | {s.values} | {s.meaning.replace('|', _BAR)} |" for s in group.settings
        ]
        header = ["| setting | default | values | meaning |", "|---|---|---|---|"]
        parts += [f"## {group.title}\n", f"{group.description}\n", "\n".join((*header, *rows, ""))]
    return "\n".join(parts)


def _code(value: object) -> str:
    return f"`{value}`" if value != "" else '`""`'


def render_help() -> str:
    """All settings as flags with their defaults and meanings, for the end of --help."""
    parts = ["settings and their defaults, which the config file can change:"]
    for group in groups():
        parts += ["", f"{group.title}: {group.description}"]
        for s in group.settings:
            flag = f"  --config.{s.name}={s.default}"
            words = f" [{s.values}]" if ", " in s.values and "[" not in s.values else ""
            parts += [f"{flag:<47} {s.meaning}{words}"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(render_page(), end="")
