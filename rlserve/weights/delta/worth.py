"""When a delta pays: how much has changed, above which share nothing is coded, and how much smaller it must be.

Of 10 million bfloat16 elements (20 MB), each changed one by one or two units in its last place, on one core, in ms. To
send them whole takes two checksums of 12 ms, the sender's and the receiver's, and copies of 2 ms; a delta takes a
comparison, coding and decoding, and neither of the checksums.

======================  =====  =====  =====  =====  =====  =====
elements changed        0.1 %    1 %    5 %   10 %   20 %   50 %
======================  =====  =====  =====  =====  =====  =====
compare, code, decode      16     22     33     36     53    240
times fewer bytes       1,000    150     39     22     13      7
======================  =====  =====  =====  =====  =====  =====

Up to some 3 % a delta costs no more than the checksums that it replaces, whatever the link. At 10 % it costs 10 ms more
and saves 19 MB, which pays on any link below 2 GB/s; beyond that the processor becomes the slower link.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_CHANGED_SHARE = 0.1
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
