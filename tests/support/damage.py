"""Damaged files and odd values, for tests that throw them at commands."""

import re

# Values that no option expects.
ODD = (
    "",
    " ",
    "-1",
    "0",
    "1.5",
    "nan",
    "-inf",
    "1e400",
    "9" * 25,
    "9" * 5000,
    "None",
    "true",
    "()",
    "('a',",
    "a,b",
    ",",
    "[[[",
    "%s%n",
    "a\nb",
    "\N{GRINNING FACE}",
    "\udcff",
    "x" * 304,
    "/",
    "/dev/null/x",
    "/proc/self/mem",
    "~nouser/x.txt",
    "s3://bucket/key",
    "hf:",
    "builtin:",
    "..",
    "--",
    "-",
)
_NUMBERS = (b"-1", b"0", b"1e999", b"9" * 4400, b"null", b"[]", b"{}", b'"x"', b"NaN", b"true")


def replace_content(path, content):
    """Replaces a file by a new one: a process that has the old one mapped would end if a page of it vanished."""
    path.unlink()
    path.write_bytes(content)


def flip_bit(path, position=None):
    """Replaces a file by one in which one bit differs, in the middle by default."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 16
    replace_content(path, content)


def damaged(content, rng):
    """Returns a file's content with one fault of a random kind.

    Args:
      content: bytes.
      rng: a `random.Random`.
    """
    at = rng.randrange(len(content) + 1)
    kinds = (
        lambda: content[:at],
        lambda: content[at:],
        lambda: b"",
        lambda: content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
        lambda: content[:at] + rng.randbytes(40) + content[at + 40 :],
        lambda: content[:at] + bytes(100) + content[at + 100 :],
        lambda: content[:at] + content[at + rng.randrange(1, 60) :],
        lambda: rng.randbytes(200),
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.replace(b"\n", b"\r"),
        lambda: content + content,
        lambda: content.replace(b'"', b"'"),
        lambda: b"[" * 3000 + content,
        lambda: b'{"a":' * 3000,
        lambda: _other_number(content, rng),
        lambda: _other_number(content, rng),
        lambda: content[:at] + "\N{GRINNING FACE}".encode()[:3] + content[at:],
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n",
    )
    return rng.choice(kinds)()


def _other_number(content, rng):
    found = list(re.finditer(rb"\d+", content))
    if not found:
        return b""
    number = rng.choice(found)
    return content[: number.start()] + rng.choice(_NUMBERS) + content[number.end() :]
