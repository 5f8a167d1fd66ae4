"""Whether a run is resumed on the data that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlserve.errors import DataError
from rlserve.rollout.dataset.content_digest import first_difference


class DigestedRows(Protocol):
    """Rows that know what they come down to."""

    @property
    def path(self) -> str: ...
    @property
    def digests(self) -> NDArray[np.uint64]: ...
    @property
    def fingerprint(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def place(self, index: int) -> str: ...


def content_of(rows: DigestedRows) -> dict[str, Any]:
    """What is saved of them."""
    return {"num_rows": len(rows), "fingerprint": list(rows.fingerprint)}


def check_same(saved: Mapping[str, Any], rows: DigestedRows, *, what: str) -> None:
    """Compare with what ``content_of`` gave when the run began; ``what`` a row is called.

    Raises:
        DataError: they differ.
    """
    remedy = f"restore {rows.path}, or start a new run on the new data"
    if saved["num_rows"] != len(rows):
        raise DataError(
            f"the run cannot be resumed on these {what}s: {saved['num_rows']} of {rows.path} were used, "
            f"and now there are {len(rows)}; {remedy}"
        )
    changed = first_difference(saved["fingerprint"], rows.digests)
    if changed is not None:
        first, last = (rows.place(index) for index in changed)
        where = f"at {first}" if first == last else f"between {first} and {last}"
        raise DataError(
            f"the run cannot be resumed on these {what}s: {what} {where} is not what it was when the run "
            f"began; {remedy}"
        )
