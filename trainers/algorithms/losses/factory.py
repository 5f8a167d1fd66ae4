"""Which policy loss a configuration names."""

from __future__ import annotations

from collections.abc import Mapping

from rlserve.trainers.algorithms.config import LossMode
from rlserve.trainers.algorithms.losses.base import PolicyLossFunction
from rlserve.trainers.algorithms.losses.cispo import cispo
from rlserve.trainers.algorithms.losses.clip_cov import clip_cov
from rlserve.trainers.algorithms.losses.geo_mean import geo_mean
from rlserve.trainers.algorithms.losses.gspo import gspo
from rlserve.trainers.algorithms.losses.kl_cov import kl_cov
from rlserve.trainers.algorithms.losses.sapo import sapo
from rlserve.trainers.algorithms.losses.vanilla import vanilla

POLICY_LOSSES: Mapping[LossMode, PolicyLossFunction] = {
    "vanilla": vanilla,
    "gspo": gspo,
    "geo_mean": geo_mean,
    "cispo": cispo,
    "sapo": sapo,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}
"""By ``loss_mode``."""
