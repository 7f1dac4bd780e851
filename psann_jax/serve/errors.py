"""Errors of requests, in the form of OpenAI's API."""

from typing import Any


class ApiError(Exception):
    """An error that the client gets.

    Attributes:
      status: of HTTP: 400, 404, 413, 415, 429, 500 or 503.
      code: a word for programs; None: there is none.
      param: name of the wrong field, or None.
      retry_after: seconds after which the client may try again; None: it should not.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """Returns the JSON object that the client gets."""
        kind = "rate_limit_error" if self.status == 429 else "server_error" if self.status >= 500 else None
        kind = kind or "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Returns the headers of the answer."""
        if self.status == 413:
            return {"Connection": "close"}  # or the rest of the body is read
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def reject(param: str, message: str, code: str | None = None) -> ApiError:
    """Returns the error for a wrong field of a request."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)
