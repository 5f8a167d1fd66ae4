"""Configuration of what scores an answer, alone or as one of several. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class RewardSourceConfig:
    """What scores an answer."""

    function: str | None = None
    """``package.module:function`` or ``path/to/file.py:function``; called with one answer, returns its reward."""
    module_folder: str | None = None
    """Folder that a ``package.module`` may lie in; null takes the one where it lies at the start, on Python's path
    or in the working folder."""
    model_path: str | None = None
    """Folder or hub name of a Hugging Face sequence-classification model with one label."""
    apply_chat_template: bool | None = None
    """Show a reward model prompt and answer as a conversation, rendered with its own chat template; None does so where
    it has one and the policy's is used (``data.apply_chat_template``)."""

    @property
    def source(self) -> str:
        """What scores, for messages: ``function=my.py:score``."""
        return ", ".join(f"{key}={value}" for key, value in self._sources())

    def _sources(self) -> Iterator[tuple[str, str]]:
        keys = ("function", "model_path")
        return ((key, value) for key in keys if (value := getattr(self, key)) is not None)

    def _problem_of_several(self, prefix: str) -> str | None:
        _, *others = (key for key, _ in self._sources())
        return f"cannot stand beside {prefix}{others[0]}: set one of the two to null" if others else None


@dataclass(frozen=True, kw_only=True)
class RewardPartConfig(RewardSourceConfig):
    """One of several rewards, under a name of your own: exactly one of ``function`` and ``model_path``."""

    weight: float = 1.0
    """Of this reward in the sum that is trained on; 0 only writes it to the metrics."""

    def __post_init__(self) -> None:
        num_sources = len(list(self._sources()))
        check_fields(
            self,
            {
                "function": (num_sources == 0 and "name a reward: function or model_path")
                or (num_sources > 1 and self._problem_of_several(""))
                or True,
                "weight": math.isfinite(self.weight) or "must be finite",
            },
        )
