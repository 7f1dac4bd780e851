"""A server in a thread of the test, and requests to it."""

import contextlib
import http.client
import json
import threading
from signal import SIGTERM


@contextlib.contextmanager
def serving(models, host="localhost"):
    """Serves models, by name, on a free port; yields the server, and ends it as SIGTERM does.

    `host` is what the server was given as the name of this machine.
    """
    from psann_jax.serve.server import Server, bind

    server = Server(models, bind("127.0.0.1", 0), host)
    thread = threading.Thread(target=server.answer)
    thread.start()
    try:
        yield server
    finally:
        server.handle_exit(SIGTERM, None)
        thread.join(60)
        assert not thread.is_alive()


def ask(server, path, body=None, method=None, headers=None):
    """Sends a request; returns status, headers and body, as JSON where it is JSON."""
    connection = http.client.HTTPConnection(*server.url.removeprefix("http://").split(":"), timeout=60)
    with contextlib.closing(connection):
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **(headers or {})} if content is not None else headers or {}
        connection.request(method or ("GET" if body is None else "POST"), path, content, given)
        answer = connection.getresponse()
        raw = answer.read()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, answer.headers, json.loads(raw) if is_json else raw.decode()


def events(text):
    """The JSON objects of a stream of server-sent events, which must end with [DONE]."""
    *parts, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]
