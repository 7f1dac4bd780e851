"""What one document of a .txt file is: a line, a paragraph, an article of WikiText, a chapter or the whole file."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from psann_jax.utils.errors import UserError

Unit = Literal["line", "paragraph", "file", "article", "heading"]

_MANY_FILES = 20  # so that a validation split by files is not a large part of the text
_MANY_BLANK_LINES = 10
_BLOCK_LINES = (1.5, 30)  # mean number of lines between blank lines where these separate paragraphs
_WIDTHS = (30, 120)  # characters, of hard-wrapped text
_WORD = 12  # characters; languages without spaces break lines within a "word"
_MIN_PAIRS = 10
_MARKDOWN_HEADING = re.compile(r" {0,3}#[ \t]+\S")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def choose_unit(heads: Sequence[str], n_files: int) -> Unit:
    """Returns what one document is, from the beginnings of the files of a source.

    A text is hard-wrapped if in at least 60 % of the pairs of successive lines the first word of the second would not
    have fitted on the first, within 90 % of the width that 98 % of the lines have at most, and that width is 30 to 120
    characters. It has paragraphs if it has 10 blank lines or more and 1.5 to 30 lines between them. A hard-wrapped text
    has paragraphs if it has blank lines at all.

    If neither holds, each line is a document. Otherwise, each file is a document if there are 20 files or more; if
    there are fewer, each paragraph is, or the file if it has no paragraphs.

    Args:
      heads: the beginnings of some of the files, without a last line that is cut off.
      n_files: number of files of the source.
    """
    blocks = [block for head in heads for block in _blocks(head.split("\n"))]
    n_blank = len(blocks) - sum(1 for head in heads if head.strip())
    n_lines = sum(map(len, blocks)) / max(len(blocks), 1)
    is_wrapped = _is_wrapped(blocks)
    if not is_wrapped and not (n_blank >= _MANY_BLANK_LINES and _BLOCK_LINES[0] <= n_lines <= _BLOCK_LINES[1]):
        return "line"
    return "file" if n_files >= _MANY_FILES or not n_blank else "paragraph"


def suggest_unit(heads: Sequence[str]) -> Unit | None:
    """Returns a unit that `choose_unit` does not choose, of which the beginnings of files have two or more.

    article: headings of WikiText. heading: headings of Markdown between blank lines in one file, as not every line that
    begins with "# " is one.
    """
    if sum(is_start for head in heads for _, is_start in _with_article_starts(head.split("\n"))) > 1:
        return "article"
    for head in heads:
        blocks = list(_blocks(head.split("\n")))
        if sum(len(block) == 1 and bool(_MARKDOWN_HEADING.match(block[0])) for block in blocks) > 1:
            return "heading"
    return None


def articles(lines: Iterable[str], where: str) -> Iterator[str]:
    r"""Yields the articles of a text in the format of WikiText, each with its lines joined with "\n".

    An article begins with a heading of level one, a line " = TITLE = " with blank lines around it. Lines of formulas
    and tables can look like one, but follow each other without blank lines. Lines before the first heading are an
    article, too.

    Args:
      lines: of the text.
      where: the file or other source, for the error message.

    Raises:
      UserError: there is no heading.
    """
    return _sections(_with_article_starts(lines), where, "line ' = TITLE = ' between blank lines, as in WikiText")


def chapters(lines: Iterable[str], where: str) -> Iterator[str]:
    """Yields what the headings of level one ("# TITLE") of a Markdown text begin; otherwise like `articles`.

    Lines in code blocks between fences are no headings.
    """
    return _sections(_with_chapter_starts(lines), where, "line '# TITLE', as in Markdown")


def _with_article_starts(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    padded = itertools.chain(("",), lines, ("",))
    for before, line, after in _triples(padded):
        text = line.strip()
        is_heading = len(text) > 4 and text[:2] == "= " and text[-2:] == " =" and "= =" not in (text[:3], text[-3:])
        yield line, is_heading and not before.strip() and not after.strip()


def _triples(items: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    for (a, b), (_, c) in itertools.pairwise(itertools.pairwise(items)):
        yield a, b, c


def _with_chapter_starts(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    fence = ""
    for line in lines:
        found = _FENCE.match(line)
        if found and not fence:
            fence = found[1]
        elif found and found[1].startswith(fence) and not line[found.end() :].strip():
            fence = ""
        yield line, not fence and bool(_MARKDOWN_HEADING.match(line))


def _sections(lines: Iterable[tuple[str, bool]], where: str, heading: str) -> Iterator[str]:
    """Yields texts that begin at lines with True, without blank lines at their ends."""
    section: list[str] = []
    n_headings = 0
    for line, is_start in itertools.chain(lines, (("", True),)):
        if is_start:
            while section and not section[-1].strip():
                section.pop()
            if section:
                yield "\n".join(section)
            section = []
        n_headings += is_start
        if section or line.strip():
            section.append(line)
    if n_headings == 1:
        raise UserError(f"data.document: {where} has no {heading}")


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    r"""Yields the runs of lines that are not blank, each joined with "\n"."""
    for block in _blocks(lines):
        yield "\n".join(block)


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    for has_text, block in itertools.groupby(lines, key=lambda line: bool(line.strip())):
        if has_text:
            yield list(block)


def _is_wrapped(blocks: Sequence[Sequence[str]]) -> bool:
    lengths = sorted(len(line) for block in blocks for line in block)
    pairs = [pair for block in blocks for pair in itertools.pairwise(block)]
    if len(pairs) < _MIN_PAIRS:
        return False
    width = lengths[len(lengths) * 98 // 100]
    full = sum(len(line) + 1 + min(len(after.split(maxsplit=1)[0]), _WORD) > 0.9 * width for line, after in pairs)
    return _WIDTHS[0] <= width <= _WIDTHS[1] and full >= 0.6 * len(pairs)
