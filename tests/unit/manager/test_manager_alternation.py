"""A load that goes to and fro is told from one that drifts and from one that has changed once."""

from __future__ import annotations

import pytest

from rlserve.manager.measurement.alternation import Alternations
from rlserve.manager.measurement.figures import Alternation


def alternations(*means: float, length: int = 40) -> Alternation | None:
    """After so many values around each mean, one a second."""
    noted = Alternations()
    for regime, mean in enumerate(means):
        for index in range(length):
            noted.note(float(regime * length + index), mean, changed=regime > 0 and index == 0)
    return noted.figure()


@pytest.mark.parametrize("means", [(0.5,), (0.5, 0.9), (0.3, 0.5, 0.9), (0.9, 0.5, 0.3, 0.1), (0.2, 0.9, 0.5, 0.3)])
def test_a_load_that_has_not_gone_to_and_fro_is_taken_to_stay(means: tuple[float, ...]) -> None:
    assert alternations(*means) is None


def test_a_load_that_goes_to_and_fro_has_a_mean_and_a_time_on_each_side() -> None:
    for means in ((1.0, 0.2, 1.0), (0.2, 1.0, 0.2), (0.5, 1.0, 0.2, 1.0, 0.2, 1.0, 0.2)):
        found = alternations(*means)
        assert found is not None
        assert found.mean == pytest.approx(0.6)
        assert found.regime_s == pytest.approx(40.0)


def test_it_ends_as_soon_as_the_load_goes_on_in_one_direction() -> None:
    assert alternations(0.2, 0.6, 0.3) is not None
    assert alternations(0.2, 0.6, 0.3, 0.1) is None
