"""What a simulated run has done: totals, and the meter that its policy is shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.measurement.meter import Meter
from rlserve.manager.measurement.readings import Reading
from rlserve.manager.roles import Role
from rlserve.simulate.spending import Spending


@dataclass(kw_only=True, eq=False)
class Journal:
    """Grows as the run goes on."""

    num_trained_groups: float = 0.0
    """With the part of the step under way that was done when the run ended."""
    num_trained_tokens: float = 0.0
    num_steps: int = 0
    step_ends_s: list[float] = field(default_factory=list)
    first_step_s: float | None = None
    """When the first step began."""
    wait_s: float = 0.0
    """The trainer waited for batches."""
    train_s: float = 0.0
    """Trainers computed, times their number."""
    generate_s: float = 0.0
    """Replicas computed, all together."""
    num_generated_tokens: float = 0.0
    staleness: Counter[int] = field(default_factory=Counter)
    """Trained groups by the age of their oldest token, in steps."""
    moves: list[tuple[float, float, str, Role]] = field(default_factory=list)
    """Begin, end, gang and its new role."""
    spending: Spending
    """What the gangs' time goes into."""
    meter: Meter | None = field(default_factory=Meter)
    """None where the policy looks at no measurement, which takes as long as everything else."""

    def note(self, reading: Reading) -> None:
        """Tell the meter."""
        if self.meter is not None:
            self.meter.note(reading)

    def measured(self, now_s: float) -> Measurements:
        """What the policy is shown."""
        return Measurements() if self.meter is None else self.meter.figures(now_s)
