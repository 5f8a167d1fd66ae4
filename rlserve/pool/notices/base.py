"""What a notice is, whoever gives it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Slots will be taken away soon."""

    reason: str
    grace_s: float | None = None
    """Seconds until then, from now on; None where nobody said."""
