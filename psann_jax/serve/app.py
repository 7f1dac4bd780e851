"""The HTTP application: routes, limits, and errors in OpenAI's form."""

import asyncio
import functools
import ipaddress
import json
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from psann_jax.plots.plotly_page import fill_template
from psann_jax.serve.answer import Answer
from psann_jax.serve.chat import ChatCompletion
from psann_jax.serve.chat_requests import parse_chat
from psann_jax.serve.completion import Completion
from psann_jax.serve.errors import ApiError, reject
from psann_jax.serve.requests import TextRequest, parse_completion
from psann_jax.serve.served import Served, find
from psann_jax.utils.errors import one_line

MAX_BODY_BYTES = 4 * 2**20
_MAX_READ_BYTES = 16 * MAX_BODY_BYTES  # most clients read the answer only after they have sent everything
_PROGRAMS = {"program": "page", "chat": "chat"}  # places in page.html -> files
# The page has its program and its style in itself, and asks nobody but this server.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Endpoints:
    """What the routes do.

    Attributes:
      models: by name.
      is_ending: whether new requests are refused, because the server ends.
    """

    def __init__(self, models: Mapping[str, Served]) -> None:
        self.models, self.is_ending = dict(models), False

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [served.card() for served in self.models.values()]})

    async def get_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        return JSONResponse(find(self.models, request.path_params["name"]).card())

    async def page(self, request: Request) -> Response:
        """GET /: the page to try the models side by side."""
        return HTMLResponse(_page(), headers={"Content-Security-Policy": _PAGE_POLICY, "X-Frame-Options": "DENY"})

    async def coordinates(self, request: Request) -> Response:
        """GET /coordinates?model=NAME&text=TEXT: the tokens of a text in the coordinates of a gravity model."""
        query = request.query_params
        served = find(self.models, query.get("model", ""))
        if not served.has_coordinates:
            raise reject("model", f"{served.name} is of base {served.run.config.model.base}, which has no coordinates")
        return HTMLResponse(await served.coordinates_page(query.get("text", "")))

    async def health(self, request: Request) -> Response:
        """GET /health: 200 as long as requests are taken."""
        self._refuse_if_ending()
        ended = [name for name, served in self.models.items() if not served.engine.is_running]
        if ended:
            raise ApiError(503, f"{', '.join(ended)}: the engine has ended; start the server again")
        return JSONResponse({"status": "ok"})

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        wanted = parse_completion(await _read_json(request))
        return await self._answer(request, Completion, wanted, find(self.models, wanted.model))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        wanted = parse_chat(await _read_json(request))
        served = find(self.models, wanted.request.model)
        if served.records is None:
            raise reject(
                "model",
                f"{served.name} was not trained on messages and has no template for them; use /v1/completions, or "
                "fine-tune it with data.messages_field",
            )
        return await self._answer(request, ChatCompletion, wanted.in_template(served.records), served)

    async def _answer(self, request: Request, form: type[Answer], wanted: TextRequest, served: Served) -> Response:
        prompts = await asyncio.to_thread(served.encode, wanted)
        self._refuse_if_ending()  # nothing else runs between this and the submission of the texts
        answer = form(wanted, prompts, served)
        if wanted.stream:
            return _EventStream(answer)
        whole = asyncio.ensure_future(answer.whole())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                raise ClientDisconnect
            return JSONResponse(whole.result())
        finally:
            whole.cancel()
            gone.cancel()
            answer.cancel()

    def _refuse_if_ending(self) -> None:
        if self.is_ending:
            raise ApiError(503, "the server is ending", code="ending", retry_after=10)


class _LocalNames:
    """Refuses requests whose Host is neither one of the names nor a loopback address, which no DNS can rebind."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname
            is_local = name in self._names or ipaddress.ip_address(name or "").is_loopback
        except ValueError:  # another name, or brackets that do not match
            is_local = False
        if is_local:
            await self._app(scope, receive, send)
        else:
            known = f"{', '.join(self._names)} or a loopback address"
            error = ApiError(400, f"Host: is {host!r:.80}, must be {known}")
            await JSONResponse(error.body(), error.status)(scope, receive, send)


class _EventStream(StreamingResponse):
    """The pieces of an answer as server-sent events; the texts end when the client has gone."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.pieces(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


def make_app(endpoints: Endpoints, local_names: Collection[str] | None) -> Starlette:
    """Returns the ASGI application.

    Args:
      endpoints: the models.
      local_names: the names, besides loopback addresses, that are accepted as the host of a request, so that no web
        page of another site can reach the server by a name that it points to 127.0.0.1. None accepts all.
    """
    routes = [
        Route("/", endpoints.page),
        Route("/coordinates", endpoints.coordinates),
        Route("/v1/models", endpoints.list_models),
        Route("/v1/models/{name:path}", endpoints.get_model),
        Route("/v1/completions", endpoints.complete, methods=["POST"]),
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        Route("/health", endpoints.health),
    ]
    middleware = [] if local_names is None else [Middleware(_LocalNames, names=local_names)]
    handlers: dict[Any, Callable[..., Any]] = {
        ApiError: _answer_error,
        HTTPException: _answer_http_error,
        ClientDisconnect: _answer_nobody,
        Exception: _answer_unforeseen,
    }
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


@functools.cache
def _page() -> str:
    files = resources.files("psann_jax.serve")
    parts = {name: (files / f"{file}.js").read_text(encoding="utf-8") for name, file in _PROGRAMS.items()}
    return fill_template((files / "page.html").read_text(encoding="utf-8"), parts)


async def _read_json(request: Request) -> Any:
    """Reads the body of a request.

    Only application/json is read. A browser asks before it sends that to another site, and this server never agrees.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"Content-Type: is {kind!r:.80}, must be application/json")
    body, n_bytes = bytearray(), 0
    async for part in request.stream():
        n_bytes += len(part)
        if n_bytes <= MAX_BODY_BYTES:
            body += part
        elif n_bytes > _MAX_READ_BYTES:
            break
    if n_bytes > MAX_BODY_BYTES:
        raise ApiError(413, f"body: has more than {MAX_BODY_BYTES} bytes")
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: is not JSON: {one_line(error)}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


async def _disconnected(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_error(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    words = {404: "there is no such path", 405: f"{request.method} is not allowed here"}
    answer = ApiError(error.status_code, f"{request.url.path}: {words.get(error.status_code, error.detail)}")
    return JSONResponse(answer.body(), error.status_code, error.headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx; nobody reads it


async def _answer_unforeseen(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return JSONResponse(ApiError(500, f"unexpected {type(error).__name__}: {one_line(error)}").body(), 500)
