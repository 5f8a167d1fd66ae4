"""Figures with their bars, as ``--json`` holds them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """A figure and its bar."""

    name: str
    value: float
    bar: float
    at_least: bool = True
    """Else it must not be above the bar."""

    @property
    def met(self) -> bool:
        """Whether it keeps to its bar."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def line(self) -> dict[str, str | float | bool]:
        """Of the list ``checks``."""
        return {"name": self.name, "value": self.value, "bar": self.bar, "met": self.met}
