"""TGI's own errors: status, ``error_type``, message, and the label under which ``/metrics`` counts them."""

from __future__ import annotations

_COUNTED_AS = {
    "validation": "validation",
    "suffix not supported": "validation",
    "batch size exceeded": "validation",
    "overloaded": "overloaded",
    "generation": "generation",
    "template_error": "template",
    "incomplete_generation": "incomplete",
    "incomplete_generation_stream": "incomplete",
}


class ApiError(Exception):
    """An error of TGI's own: HTTP ``status``, ``kind`` (``error_type``) and message."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    @property
    def counted_as(self) -> str | None:
        """The ``err`` label of ``tgi_request_failure``; None: TGI does not count it."""
        return _COUNTED_AS.get(self.kind)


def invalid(text: str) -> ApiError:
    """A 422 of validation."""
    return ApiError(422, "validation", f"Input validation error: {text}")


def tool_error(text: str) -> ApiError:
    """A 422 for tools that cannot be used."""
    return ApiError(422, "tool_error", f"Tool error: {text}")


def overloaded() -> ApiError:
    """The 429 beyond the limit of concurrent requests."""
    return ApiError(429, "overloaded", "Model is overloaded")


def generation_failed(text: str) -> ApiError:
    """The 424 of a backend failure."""
    return ApiError(424, "generation", f"Request failed during generation: {text}")


def incomplete(*, streaming: bool) -> ApiError:
    """The 500 for a reply whose backend stopped without a last token."""
    if streaming:
        return ApiError(500, "incomplete_generation_stream", "Incomplete generation stream")
    return ApiError(500, "incomplete_generation", "Incomplete generation")


def unhealthy() -> ApiError:
    """The 503 of ``/health``."""
    return ApiError(503, "healthcheck", "unhealthy")


def error_body(error: ApiError) -> dict[str, str]:
    """The JSON of an error."""
    return {"error": str(error), "error_type": error.kind}
