"""Which policy loss a configuration names."""

from __future__ import annotations

from collections.abc import Mapping

from rlserve.trainers.algorithms.config import LossMode
from rlserve.trainers.algorithms.losses.base import PolicyLossFunction
from rlserve.trainers.algorithms.losses.vanilla import vanilla

POLICY_LOSSES: Mapping[LossMode, PolicyLossFunction] = {"vanilla": vanilla}
"""By ``loss_mode``."""
