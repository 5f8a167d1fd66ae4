"""Whether an answer equals the reference as mathematics, by math-verify. Loaded in a process that can be ended."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from rlserve.rollout.rewards.base import RewardSample

if find_spec("math_verify") is not None:  # an extra: without it the reward is refused before this module is needed
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

ANSWER_FOUND = "answer_found"
"""Part: 1 where the response has something that can be read as mathematics."""
REFERENCE_FOUND = "reference_found"
"""Part: the same of the reference answer."""

_MARKED_AS_LATEX = ("$", "\\(", "\\[", "\\boxed", "\\begin")
_GSM8K_MARK = "####"

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of deadlines that are ours


def compare(sample: RewardSample) -> dict[str, float]:
    """``score`` 1 where the response's final answer equals ``sample.answer``, a text, else 0."""
    reference = _parse(_as_latex(str(sample.answer)))
    answer = _parse(sample.response)
    return {
        "score": float(verify(reference, answer, timeout_seconds=None)),
        ANSWER_FOUND: float(bool(answer)),
        REFERENCE_FOUND: float(bool(reference)),
    }


def _parse(text: str) -> list[object]:
    boxed_first = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    found: list[object] = parse(text, extraction_config=boxed_first, parsing_timeout=None)
    return found


def _as_latex(reference: str) -> str:
    """A reference is often a formula without the marks around it, or the last line of a solution as in GSM8K."""
    final = reference.rpartition(_GSM8K_MARK)[2].strip()
    return final if any(mark in final for mark in _MARKED_AS_LATEX) else f"${final}$"
