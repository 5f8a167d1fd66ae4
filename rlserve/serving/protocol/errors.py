"""Errors as OpenAI's clients know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rlserve.errors import RlserveError

_TYPES: Mapping[int, str] = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "ContentTooLargeError",
    415: "UnsupportedMediaTypeError",
    422: "UnprocessableEntityError",
    424: "FailedDependencyError",
    429: "RateLimitError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}
_MAX_MESSAGE_CHARS = 1000


class ApiError(RlserveError, RuntimeError):
    """An answer that is an error.

    Args:
        param: the part of the request that is wrong, if one is.
        code: a word for it, where clients know one; else they read the status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        code: str | None = None,
    ) -> None:
        super().__init__(status, message, param, headers)
        self.status = status
        self.code = code
        self.message = message[:_MAX_MESSAGE_CHARS]
        self.param = param
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return self.message

    def with_names(self, names: Mapping[str, str]) -> ApiError:
        """The same, with the parameter by what an API calls it.

        Args:
            names: by those that are used here; others stay.
        """
        if self.param is None or self.param not in names:
            return self
        return ApiError(self.status, self.message, names[self.param], self.headers, code=self.code)

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        known = _TYPES.get(self.status, "BadRequestError" if self.status < 500 else "InternalServerError")
        code = self.status if self.code is None else self.code
        return {"error": {"message": self.message, "type": known, "param": self.param, "code": code}}


def of_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body. Says nothing of its values, which may be a prompt."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # Names of a union's members stand in the location too; the parameter is what comes before.
    place = ".".join(str(part) for part in first["loc"])
    param = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown parameter {place}: this server does not have it", param)
    where = f"{place}: " if place else "the body: "
    return ApiError(400, f"{where}{first['msg']} ({first['type']})", param)


def unsupported(param: str, what: str) -> ApiError:
    """For what OpenAI's API has and this server has not."""
    return ApiError(400, f"{param}: {what}", param)
