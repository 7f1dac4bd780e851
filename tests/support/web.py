"""A web server on this machine that serves the files of a folder, as well or as badly as a test needs."""

import contextlib
import threading
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """The server.

    Attributes:
      url: of the folder.
      requests: the path and the Range header of each request so far.
      ranges: whether it sends parts of files.
      edit: changes the headers of its answers, a dict.
      failures: what the next requests get, first to last: a status, the number of bytes after which the connection
        ends, or a `Stall`.
      ended: whether the server ends.
    """

    def __init__(self, url):
        self.url, self.requests, self.ranges, self.failures = url, [], True, []
        self.edit = lambda headers: None
        self.ended = threading.Event()


@dataclass(frozen=True)
class Stall:
    """An answer that stops after some bytes, without an end of the connection."""

    n_bytes: int


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args, web, **kwargs):
        self.web = web
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.web.requests.append((self.path, self.headers.get("Range")))
        failure = self.web.failures.pop(0) if self.web.failures else None
        stall = isinstance(failure, Stall)
        if failure is not None and not stall and 400 <= failure < 600:
            self.send_error(failure)
            return
        try:
            with open(self.translate_path(self.path), "rb") as file:
                content = file.read()
        except OSError:
            self.send_error(404)
            return
        start, total = 0, len(content)
        is_part = self.web.ranges and self.headers.get("Range", "").startswith("bytes=")
        if is_part:
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
            if start >= total:
                self.send_error(416)
                return
        self.send_response(206 if is_part else 200)
        headers = {"Content-Length": str(total - start), "ETag": f'"{hash(content)}"'}
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        self.web.edit(headers)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            stop = total if failure is None else start + (failure.n_bytes if stall else failure)
            self.wfile.write(content[start:stop])
            if stall:
                self.web.ended.wait()
        self.close_connection = True

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def web_server(folder):
    """Starts a server of a folder, and yields its `Web`."""
    web = Web("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, web=web, directory=str(folder)))
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
