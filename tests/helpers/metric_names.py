"""Names of metrics as the table of ``rlserve.tracking.names`` documents them."""

from __future__ import annotations

import re

from rlserve.tracking import names


def spelled_out() -> set[str]:
    """Every name that the table documents, with its braces written out."""
    spelled: set[str] = set()
    for pattern in names.METRICS:
        head, alternatives, tail = re.fullmatch(r"([^{]*)(?:\{(.*)\})?(.*)", pattern).groups()  # type: ignore[union-attr]
        spelled.update(f"{head}{alternative}{tail}" for alternative in (alternatives or "").split(","))
    return spelled
