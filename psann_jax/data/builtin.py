"""The built-in text: English and code from the running Python's standard library."""

import ast
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from psann_jax.utils.errors import UserError

# Codec tables, and packages that some distributions ship separately: skipped so that the text is the same everywhere.
_SKIPPED_MODULES = frozenset(
    ("distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo", "venv", "test")
)
_SKIPPED_FOLDERS = frozenset(("test", "tests", "__pycache__"))
_TOPICS = Path("pydoc_data/topics.py")


def python_documents() -> Iterator[str]:
    """Yields the help topics, then the module sources of the standard library, in a fixed order.

    Each topic and each file is one document, about 8 MB in all. Files are read, never imported. The documents are the
    same for all complete installations of one Python version.

    Raises:
      UserError: the running Python has no sources of its standard library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(_module_files(root), key=lambda path: path.relative_to(root).parts)
    if not files:
        raise UserError(f"data.sources: builtin:python finds no Python sources in {root}; name a text of your own")
    if (root / _TOPICS).is_file():
        yield from _topics(root / _TOPICS)
    for path in files:
        text = _read_source(path)
        if text and not text.isspace():
            yield text


def _module_files(root: Path) -> Iterator[Path]:
    for name in sys.stdlib_module_names - _SKIPPED_MODULES:
        if (root / f"{name}.py").is_file():
            yield root / f"{name}.py"
        for path in (root / name).rglob("*.py"):
            inner = path.relative_to(root)
            if inner != _TOPICS and not _SKIPPED_FOLDERS.intersection(inner.parts[:-1]):
                yield path


def _topics(path: Path) -> Iterator[str]:
    for node in ast.parse(_read_source(path)).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            yield from (topics[name] for name in sorted(topics) if topics[name].strip())


def _read_source(path: Path) -> str:
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: the standard library's source cannot be read: {e}") from e
