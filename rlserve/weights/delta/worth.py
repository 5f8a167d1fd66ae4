"""When a delta pays: how much has changed, above which share nothing is coded, and how much smaller it must be.

Of 75 million bfloat16 elements (150 MB), each changed one by one or two units in its last place, in ms of one core. A
whole version takes neither: both ends copy it, as they do after a delta, and that proves it.

==========================  =====  =====  =====  =====
elements changed              1 %    3 %    5 %   10 %
==========================  =====  =====  =====  =====
compare, code and compress     61    104    136    202
decode and apply               22     37     47    125
times fewer bytes             152     60     39     22
pays on links below, GB/s     1.8    1.0    0.8    0.4
==========================  =====  =====  =====  =====

The last row is what a delta saves by what it takes. Weights go to other machines by one link to each, and it is coded
once for all of them, beside the training; so up to 5 % it pays on networks of 10 Gbit/s. Within one machine nothing
travels, and whole versions take less of the processors: ``weights.anchor_every=1``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_CHANGED_SHARE = 0.05
"""Of the elements, in a sample: where more have changed, the weights are sent whole and nothing is coded."""
MIN_FACTOR = 8
"""A delta must be as many times smaller than the whole: few elements may have changed a lot."""
_SPAN = 2**14
_NUM_SPANS = 64
"""Of ``_SPAN`` elements, evenly over the payload: what is looked at where it is larger than that."""


def changed_share(base: NDArray[np.uint8], new: NDArray[np.uint8], element_size: int) -> float:
    """Share of the elements whose bits differ: of all, or of a sample of a million in a payload of more."""
    before, after = base.view(f"<u{element_size}"), new.view(f"<u{element_size}")
    if not len(after):
        return 0.0
    if len(after) <= _SPAN * _NUM_SPANS:
        return float(np.count_nonzero(before != after)) / len(after)
    starts = np.linspace(0, len(after) - _SPAN, _NUM_SPANS, dtype=np.int64)
    num_changed = sum(
        np.count_nonzero(before[start : start + _SPAN] != after[start : start + _SPAN]) for start in starts.tolist()
    )
    return float(num_changed) / (_SPAN * _NUM_SPANS)


def is_worth_coding(share: float) -> bool:
    """Whether so few elements have changed that a delta may pay."""
    return share <= MAX_CHANGED_SHARE


def is_worth_sending(num_coded_bytes: int, num_whole_bytes: int) -> bool:
    """Whether a delta has become small enough to be sent in place of the whole."""
    return num_coded_bytes * MIN_FACTOR <= num_whole_bytes
