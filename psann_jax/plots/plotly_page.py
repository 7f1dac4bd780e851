"""Interactive pages: one HTML file with its data, its program and plotly.js, which works offline."""

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any


def plotly_page(package: str, name: str, content: Any, parts: Mapping[str, str] | None = None) -> str:
    """Fills the template ``name.html`` of a package.

    Args:
      package: the package that has the files ``name.html`` and ``name.js``.
      name: of the files.
      content: data for the program, in the template's place ``<!--content-->``; untrusted text in it is harmless.
      parts: HTML for further places of the template, by name.

    Returns:
      The page. ``/*plotly*/`` and ``/*program*/`` are the places of the scripts.
    """
    from plotly.offline import get_plotlyjs

    files = resources.files(package)
    scripts = {
        "plotly": get_plotlyjs(),
        "program": (files / f"{name}.js").read_text(encoding="utf-8"),
        # HTML decodes no entities in a script element, but JSON has escapes: with them no text can end the element.
        "content": json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return fill_template((files / f"{name}.html").read_text(encoding="utf-8"), {**scripts, **(parts or {})})


def fill_template(template: str, parts: Mapping[str, str]) -> str:
    """Puts parts into the places ``<!--name-->`` and ``/*name*/`` of a template."""
    return re.sub(r"<!--(\w+)-->|/\*(\w+)\*/", lambda m: parts[m[1] or m[2]], template)
