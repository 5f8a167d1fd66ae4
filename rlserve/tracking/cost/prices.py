"""What an hour of a slot costs: the user's own figures, from a file. None is assumed.

::

    currency: EUR
    date: 2026-11-01          # of the prices
    per_hour:
      H100: 2.60
      H200: {on_demand: 3.40, spot_factor: 0.4}      # H200-spot is paid at 3.40 × 0.4
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from rlserve.errors import UserError
from rlserve.roofline.accelerators import PACED_PREFIX, SPOT_SUFFIX

_KEYS = {"currency", "date", "per_hour"}
_PRICE_KEYS = {"on_demand", "spot_factor"}


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Of an hour, by type of slot."""

    currency: str
    date: str
    """On which they held."""
    per_hour: Mapping[str, float]
    """Those of spot machines under the name that a type has there: ``H200-spot``."""

    def of(self, slot_type: str) -> float | None:
        """Of one slot for an hour; a paced one costs what it stands for. None where none is given."""
        return self.per_hour.get(slot_type, self.per_hour.get(slot_type.removeprefix(PACED_PREFIX)))


def read_prices(path: Path) -> Prices:
    """From the user's file.

    Raises:
        UserError: there is no such file, or it is not of this form.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cost.prices={path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"cost.prices={path} is not YAML: {error}") from error
    if not isinstance(content, dict) or set(content) != _KEYS:
        raise UserError(f"cost.prices={path} must have the keys {', '.join(sorted(_KEYS))}, and no other")
    if not isinstance(content["currency"], str) or not isinstance(content["date"], date):
        raise UserError(f"cost.prices={path}: currency must be a name (EUR), date a day (2026-11-01)")
    if not isinstance(content["per_hour"], dict) or not content["per_hour"]:
        raise UserError(f"cost.prices={path}: per_hour must give a price for each type of slot")
    per_hour = dict[str, float]()
    for name, given in content["per_hour"].items():
        on_demand, spot = _price(path, name, given)
        per_hour[str(name)] = on_demand
        if spot is not None:
            per_hour.setdefault(f"{name}{SPOT_SUFFIX}", spot)
    return Prices(currency=content["currency"], date=content["date"].isoformat(), per_hour=per_hour)


def _price(path: Path, name: str, given: Any) -> tuple[float, float | None]:
    """On demand and, where a factor says so, on spot machines."""
    parts = given if isinstance(given, dict) else {"on_demand": given}
    on_demand, spot_factor = numbers = [parts.get("on_demand"), parts.get("spot_factor", 1.0)]
    if set(parts) - _PRICE_KEYS or not all(isinstance(each, int | float) and each >= 0 for each in numbers):
        raise UserError(
            f"cost.prices={path}: per_hour.{name} must be a number, or on_demand with a spot_factor, not {given!r}"
        )
    return float(on_demand), float(on_demand) * float(spot_factor) if "spot_factor" in parts else None
