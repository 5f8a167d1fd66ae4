"""Which answers are told without some of their text, and what cannot be told beside that."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rlserve.serving.content.mask_stream import MaskStream
from rlserve.serving.front.context import ServerContext
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import SamplingFields


def check_num_chars(context: ServerContext, texts: Iterable[str], param: str) -> None:
    """Raise ``ApiError`` for more text than is masked, or looked at by a filter, in one prompt.

    Args:
        param: that it came in.
    """
    if context.masking is None and context.filtering is None:
        return
    longest = context.config.content.max_prompt_chars
    if (number := sum(map(len, texts))) > longest:
        message = (
            f"the prompt has {number} characters, and this server looks through {longest} at most "
            "(content.max_prompt_chars): send less at once"
        )
        raise ApiError(413, message, param)


def mask_of(context: ServerContext, asked: SamplingFields, num_logprobs: int | None) -> Callable[[], MaskStream] | None:
    """What makes the mask of each answer; None where all is told.

    Raises:
        ApiError: tokens are asked for, which would tell what is taken out.
    """
    if context.masking is None or not context.masking.masks_answers:
        return None
    wanted = {
        "logprobs": num_logprobs is not None,
        "prompt_logprobs": asked.prompt_logprobs is not None,
        "return_token_ids": bool(asked.return_token_ids),
    }
    for name, is_wanted in wanted.items():
        if is_wanted:
            raise ApiError(400, f"{name}: this server masks its answers (content.masker), and tokens would tell", name)
    return context.masking.answer


def check_token_prompt(context: ServerContext) -> None:
    """Raise ``ApiError`` for a prompt of tokens where prompts are masked."""
    if context.masking is not None and context.masking.masks_prompts:
        raise ApiError(400, "this server masks its prompts (content.masker): send text, not tokens", "prompt")


def check_tgi(context: ServerContext) -> None:
    """Raise ``ApiError`` where answers are masked: this API tells the text of each token."""
    if context.masking is not None:
        raise ApiError(422, "this server masks texts (content.masker), and this API tells each token", "inputs")
