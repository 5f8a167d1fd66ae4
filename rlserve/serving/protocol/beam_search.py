"""``use_beam_search``: what cannot be had beside it."""

from __future__ import annotations

from rlserve.engine.requests.validation import MAX_TOP_LOG_PROBS
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import SamplingFields

_NO_FORM = "the answers of a beam search have no form: leave out either"
_NO_RULE = "is not applied in a beam search: leave out either"
_REFUSED = {
    "stream": "a beam search knows its answers at the end alone: leave out stream",
    **dict.fromkeys(("stop", "bad_words", "logit_bias"), _NO_RULE),
    "min_tokens": _NO_RULE,
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), _NO_RULE),
    **dict.fromkeys(("structured_outputs", "guided_json", "guided_regex"), _NO_FORM),
    **dict.fromkeys(("guided_choice", "guided_grammar"), _NO_FORM),
    "prompt_logprobs": "a beam search does not tell them: leave out either",
    "logprob_token_ids": "a beam search tells the likeliest tokens: leave out either",
}


def check_beam_search(asked: SamplingFields) -> None:
    """Raise ``ApiError`` for what a beam search does not do. Nothing is drawn, so ``temperature``, ``top_p``,
    ``top_k``, ``min_p`` and ``seed`` change nothing."""
    if not asked.use_beam_search:
        return
    for name, what in _REFUSED.items():
        value = getattr(asked, name)
        if value or (name in ("prompt_logprobs", "structured_outputs") and value is not None):
            raise ApiError(400, f"{name}: {what}", name)
    if asked.repetition_penalty not in (None, 1.0):
        raise ApiError(400, f"repetition_penalty: {_NO_RULE}", "repetition_penalty")
    if asked.response_format is not None and asked.response_format.get("type") != "text":
        raise ApiError(400, f"response_format: {_NO_FORM}", "response_format")
    if len(asked.allowed_token_ids or ()) > MAX_TOP_LOG_PROBS:
        message = f"allowed_token_ids can be {MAX_TOP_LOG_PROBS} at most in a beam search"
        raise ApiError(400, message, "allowed_token_ids")
