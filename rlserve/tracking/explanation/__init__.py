"""Why a run's slots moved or stayed, and what it came to: from the files of a run to words."""

from rlserve.tracking.explanation.story import Explanation, Hold, explain
from rlserve.tracking.explanation.wording import describe

__all__ = ["Explanation", "Hold", "describe", "explain"]
