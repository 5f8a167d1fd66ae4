"""Requests for structured outputs of the model in ``json_model.py``."""

from __future__ import annotations

from typing import Any

from engine_builders import make_request

from rlserve.engine import Request, StructuredOutput
from rlserve.engine.requests.structured_output import StructuredOutputKind

PROMPT = (40, 41, 42)


def structured(request_id: str, kind: StructuredOutputKind, text: str = "", **sampling: Any) -> Request:
    """A request for an answer in some form."""
    wanted = StructuredOutput(kind=kind, text=text)
    return make_request(request_id, PROMPT, **({"max_tokens": 60, "structured_output": wanted} | sampling))
