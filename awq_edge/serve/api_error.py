"""Errors as clients of the OpenAI API expect them: a status and {"error": {...}}."""

from __future__ import annotations

from awq_edge.errors import AwqEdgeError, ConfigError
from awq_edge.serve.scheduler import ClosedError, QueueFullError

# A client that comes back while the server shuts down meets the next one, if there is one.
_RETRY_AFTER_SHUTDOWN = 5


class GrammarError(ConfigError):
    """A JSON schema is not supported, or no token of the vocabulary goes on with it."""


class ApiError(Exception):
    """An answer that is an error.

    param: the parameter of the request at fault.
    code: a word for programs.
    retry_after: seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The `type` that the OpenAI API gives to errors of this status."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, object]:
        """The JSON body."""
        # A lone surrogate, which JSON can name, is no UTF-8.
        message = " ".join(str(self).split()).encode("utf-8", "backslashreplace").decode()
        error = {"message": message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The request is at fault: status 400."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: BaseException) -> ApiError:
    """The error that a client receives for an exception; of a defect only that there is one, its
    details are in the server's log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            f"{error}; try again in {error.retry_after} s",
            code="queue_full",
            retry_after=error.retry_after,
        )
    if isinstance(error, ClosedError):
        return ApiError(503, str(error), code="shutting_down", retry_after=_RETRY_AFTER_SHUTDOWN)
    if isinstance(error, AwqEdgeError):  # the bundle or the machine: requests are checked before
        return ApiError(500, "the model could not be run; see the server's log", code="model_error")
    return ApiError(500, "internal error; see the server's log", code="internal_error")
