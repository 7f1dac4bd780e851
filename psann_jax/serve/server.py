"""From trained runs to a listening server, and its end."""

import ipaddress
import math
import socket
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import uvicorn

from psann_jax.serve.app import Endpoints, make_app
from psann_jax.serve.served import Served
from psann_jax.utils.errors import UserError

_BACKLOG = 1024
_GRACE_S = 60  # for the texts that are in progress when the server ends
_SENDING_S = 10  # for the answers that are then still being sent


def bind(host: str, port: int) -> socket.socket:
    """Reserves an address; connections are refused until `serve`.

    Raises:
      UserError: the address cannot be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:  # the latter: the host has characters that no name can have
        why = error.strerror if isinstance(error, OSError) else "it is no name of a host"
        raise UserError(f"--host, --port: {host} {port} cannot be used: {why}; choose another one") from error
    return bound


class Server(uvicorn.Server):
    """Answers requests until SIGTERM or Ctrl-C.

    It then refuses new requests and finishes those that it has taken on, for at most a minute. A second signal ends it
    at once: texts in progress end with an error.

    Attributes:
      url: its address.
      models: by name.
    """

    def __init__(self, models: Mapping[str, Served], bound: socket.socket, host: str = "localhost") -> None:
        """Compiles the programs of the models, which takes seconds, and starts their engines.

        Args:
          models: by name.
          bound: from `bind`.
          host: as it was given to `bind`; requests may call this machine so.
        """
        address, port = bound.getsockname()[:2]
        names = dict.fromkeys(("localhost", host.lower())) if ipaddress.ip_address(address).is_loopback else None
        self.url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
        self.models, self._endpoints, self._bound, self._deadline = models, Endpoints(models), bound, math.inf
        app = make_app(self._endpoints, names)
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=_SENDING_S,
            )
        )
        for served in models.values():
            served.engine.start()
        bound.listen(_BACKLOG)  # connections wait for `answer`

    def answer(self) -> None:
        """Answers requests until a signal."""
        self.run(sockets=[self._bound])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and Ctrl-C."""
        if not self._endpoints.is_ending:
            self._endpoints.is_ending = True
            self._deadline = time.monotonic() + _GRACE_S
            print("ending: the requests in progress are finished first", file=sys.stderr, flush=True)
        else:
            self._deadline = 0.0

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to end now; uvicorn calls it every tenth of a second."""
        if self._endpoints.is_ending:
            engines = [served.engine for served in self.models.values()]
            is_late = time.monotonic() > self._deadline
            if is_late or all(engine.is_idle for engine in engines):
                for engine in engines:
                    engine.close("the server is ending")
                self.should_exit = True
        result: Any = await super().on_tick(counter)
        return bool(result)
