"""What answers go through once they are generated, in training and on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlserve.rollout.conversations.player import ConversationPlayer
from rlserve.rollout.scoring.base import AnswerScorer


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerStages:
    """In this order."""

    conversations: ConversationPlayer | None = None
    """Carries a first turn on to the end of its conversation; None where an answer is one turn."""
    decode: Callable[[NDArray[np.int32]], str]
    """The text of an answer, as the reward sees it."""
    scorer: AnswerScorer
