"""Errors as the clients of each route read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlserve.json_log import REQUEST_FIELDS
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.messages import messages_error
from rlserve.serving.protocol.tgi import tgi_error

TGI_PATHS = frozenset({"/generate", "/generate_stream"})
"""Whose errors have TGI's shape, once a request is past the gate."""
MESSAGES_PATHS = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
"""Whose errors have Anthropic's shape, those of the gate too."""
_NAMES: Mapping[str, Mapping[str, str]] = {
    "/v1/responses": {
        "messages": "input",
        "prompt": "input",
        "structured_outputs": "text",
        "logprobs": "top_logprobs",
    },
    "/v1/messages": {"structured_outputs": "output_config", "stop": "stop_sequences"},
}
"""What parameters are called that are known by other names behind the routes."""


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The body of an answer that is an error."""
    if path in TGI_PATHS:
        return tgi_error(error)
    error = error.with_names(_NAMES.get(path, {}))
    if path in MESSAGES_PATHS:
        fields = REQUEST_FIELDS.get()
        return messages_error(error, None if fields is None else fields.request_id)
    return error.content
