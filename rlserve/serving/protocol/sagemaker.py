"""``/invocations``: which of the other bodies one is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class InvocationShape(BaseModel):
    """What tells a body's kind; all else of it is passed over here."""

    messages: Any = None
    prompt: Any = None
