"""What a checkpoint says of a source of rows, and whether a run is resumed on the data that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceContent:
    """All that a stream of rows depends on, but for the position in it."""

    seed: int
    train: DigestedRows
    held_out: DigestedRows
    rows_are: str
    """What the rows are called, such as ``prompts``."""
    row_is: str
    """What of a row is compared, such as ``prompt or answer``."""

    def snapshot(self, position: int) -> dict[str, Any]:
        """A position as plain data for a checkpoint (JSON), and what the data comes down to."""
        return {
            "position": position,
            "seed": self.seed,
            "train": _content_of(self.train),
            "held_out": _content_of(self.held_out),
        }

    def position_in(self, snapshot: Mapping[str, Any]) -> int:
        """The position that was saved.

        Raises:
            DataError: the data are others than then, or in another order: it would be of another row.
        """
        if snapshot["seed"] != self.seed:
            raise DataError(f"the run cannot be resumed: seed was {snapshot['seed']} and is now {self.seed}")
        self._check_same(snapshot["train"], self.train)
        self._check_same(snapshot["held_out"], self.held_out)
        position: int = snapshot["position"]
        return position

    def _check_same(self, saved: Mapping[str, Any], rows: DigestedRows) -> None:
        refused = f"the run cannot be resumed on these {self.rows_are}"
        remedy = f"restore {rows.path}, or start a new run on the new data"
        if saved["num_rows"] != len(rows):
            raise DataError(
                f"{refused}: {saved['num_rows']} of {rows.path} were used, and now there are {len(rows)}; {remedy}"
            )
        changed = first_difference(saved["fingerprint"], rows.digests)
        if changed is not None:
            first, last = (rows.place(index) for index in changed)
            where = f"at {first}" if first == last else f"between {first} and {last}"
            raise DataError(f"{refused}: {self.row_is} {where} is not what it was when the run began; {remedy}")


def _content_of(rows: DigestedRows) -> dict[str, Any]:
    return {"num_rows": len(rows), "fingerprint": list(rows.fingerprint)}
