"""Opens a page in a headless browser, acts like a reader there, and returns what the reader saw."""

import html
import json
import re
import shutil
import subprocess

import pytest

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HAS_BROWSER = _CHROMIUM is not None
needs_browser = pytest.mark.skipif(not HAS_BROWSER, reason="needs chromium")
_FLAGS = ("--headless=new", "--no-sandbox", "--enable-unsafe-swiftshader", "--use-angle=swiftshader",
          "--virtual-time-budget=15000", "--enable-logging=stderr", "--dump-dom")  # fmt: skip

_ERROR_LISTENER = """<script>
const seen = { errors: [] };
addEventListener("error", (event) => seen.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
console.error = (...what) => seen.errors.push(what.join(" "));
const byId = (id) => document.getElementById(id);
const settled = () => new Promise((resolve) => setTimeout(resolve, 400));
</script>"""

# Runs the reader and writes what it saw into the document.
_READER = """<script>
addEventListener("load", async () => {
  READER
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
</script>"""


def read_page(text, reader, folder, size=(1200, 900)):
    """Opens a page in a browser window.

    Args:
      text: the page, HTML with a head and a body.
      reader: body of an async JavaScript function with `seen`, an object to fill, `byId`, and `settled`, which waits.
      folder: an empty one.
      size: width and height of the window, at least 500 wide.

    Returns:
      `seen`; its "errors" are those of the page.
    """
    path = folder / "page.html"
    path.write_text(with_reader(text, reader), encoding="utf-8")
    return read_url(path.as_uri(), folder, size)


def with_reader(text, reader):
    """Returns the page with the reader in it, for a server; see `read_page`."""
    head = text.replace("<head>", f"<head>{_ERROR_LISTENER}", 1)
    body = head.rindex("</body>")
    return head[:body] + _READER.replace("READER", reader) + head[body:]


def read_url(url, folder, size=(1200, 900)):
    """Opens an address whose page is from `with_reader`; see `read_page`."""
    flags = [*_FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"]
    done = subprocess.run([_CHROMIUM, *flags, url], capture_output=True, text=True, timeout=120)
    result = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert result, console
    assert not [line for line in console if "Uncaught" in line or "rror" in line]
    return json.loads(html.unescape(result[1]))
