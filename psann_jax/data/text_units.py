"""What one document of a .txt file is: a line, a paragraph or the whole file."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

Unit = Literal["line", "paragraph", "file"]

_MANY_FILES = 20  # so that a validation split by files is not a large part of the text
_MANY_BLANK_LINES = 10
_BLOCK_LINES = (1.5, 30)  # mean number of lines between blank lines where these separate paragraphs
_WIDTHS = (30, 120)  # characters, of hard-wrapped text
_WORD = 12  # characters; languages without spaces break lines within a "word"
_MIN_PAIRS = 10


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
