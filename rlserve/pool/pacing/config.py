"""Configuration of paced slots. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class PacingConfig:
    """What paced slots (``pool.slots`` of a type such as ``paced-H100``) stand for; without any it has no effect."""

    model: str = "8B"
    """The model whose times they take: ``0.6B``, ``1.7B``, ``4B``, ``8B``, ``14B``, ``32B`` or ``70B``, or the folder
    of a model, of which only ``config.json`` is read."""
    tokens_scale: float = 64.0
    """Tokens of that model that one token of the small model stands for."""
    dilation: float = 1.0
    """Seconds that a modelled second takes. Below 1 a run is over sooner than on the accelerators, as long as this
    machine keeps up: the summary says if it did not."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "tokens_scale": self.tokens_scale > 0 or "must be above 0",
                "dilation": self.dilation > 0 or "must be above 0",
            },
        )
