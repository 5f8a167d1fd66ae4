"""The contract of a kind of data: what samples a row makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Tokens in their order, and which of them are learned. The first never is: nothing stands before it."""

    token_ids: NDArray[np.int32]
    """[tokens]"""
    is_trained: NDArray[np.bool_]
    """[tokens]"""
    margin: float | None = None
    """Of the chosen sample of a pair: by how much its score should be above the other's; None where no row has any."""

    def __post_init__(self) -> None:
        assert self.token_ids.shape == self.is_trained.shape
        assert not self.is_trained[:1].any(), "the first token is not predicted"


class RowReader(ABC):
    """Makes samples of the rows of a table."""

    samples_per_row: int

    @abstractmethod
    def read(self, values: Mapping[str, Any]) -> tuple[Sample, ...]:
        """``samples_per_row`` samples of a row, given as column name to value.

        Raises:
            BadRowError: the row cannot be used.
        """
