"""Errors as clients of OpenAI's API read them."""

from __future__ import annotations

import http

from qa_jax.config import JsonDict
from qa_jax.errors import InputError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that is refused, or cannot be answered.

    Attributes:
        status: of HTTP.
        message: the cause and the remedy.
        param: the field that is meant.
        code: a word for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @classmethod
    def of(cls, error: InputError, param: str | None = None) -> ApiError:
        """An input error as the client's fault."""
        return cls(400, str(error), param, "invalid_value")

    def body(self) -> JsonDict:
        """{"error": ...}."""
        kind = _TYPES.get(self.status)
        if kind is None:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message or http.HTTPStatus(self.status).phrase,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def overloaded(message: str, seconds: int = 1) -> ApiError:
    """429 with the time after which to try again."""
    return ApiError(429, message, code="queue_full", headers={"Retry-After": str(seconds)})
