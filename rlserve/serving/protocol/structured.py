"""The one place where answers in a given form are looked at: grammars, JSON schemas, tools."""

from __future__ import annotations

from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import SamplingFields

_FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")


def check_structured(asked: SamplingFields) -> None:
    """Refuse what is not there: nothing that a client asks for is passed over.

    Raises:
        ApiError: another form than text is asked for.
    """
    if asked.response_format is not None and asked.response_format != {"type": "text"}:
        raise ApiError(501, "response_format: only {'type': 'text'} can be had", "response_format")
    for name in _FIELDS:
        if getattr(asked, name) is not None:
            raise ApiError(501, f"{name}: answers cannot be held to a form", name)
