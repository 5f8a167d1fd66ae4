"""The two roles of a gang."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a gang does."""

    TRAIN = "train"
    ROLLOUT = "rollout"
