"""How much a model is to think before it answers: what clients ask for, and what its chat template knows of it."""

from __future__ import annotations

from typing import Any

from rlserve.serving.protocol.errors import ApiError

_EFFORT, _SWITCH = "reasoning_effort", "enable_thinking"
"""Variables of chat templates: gpt-oss' and others', and Qwen's and others'."""


def effort_arguments(effort: str | None, template: str, param: str) -> dict[str, Any]:
    """What a chat template is given for an effort; ``none`` is no thinking.

    Args:
        template: the text of the chat template.
        param: that the effort came in.

    Raises:
        ApiError: the template has no variable for it.
    """
    if effort is None:
        return {}
    if _EFFORT in template:
        return {_EFFORT: effort}
    if _SWITCH in template:
        return {_SWITCH: effort != "none"}
    message = f"{param}: the chat template reads neither {_EFFORT} nor {_SWITCH}, so the model cannot be told"
    raise ApiError(400, message, param)


def switch_arguments(thinks: bool, template: str, param: str, *, has_reasoning: bool) -> dict[str, Any]:
    """What a chat template is given for thinking that is turned on or off.

    Args:
        has_reasoning: whether the model's reasoning is known by its template, or by configuration.

    Raises:
        ApiError: it cannot be turned off.
    """
    if _SWITCH in template:
        return {_SWITCH: thinks}
    if not thinks and has_reasoning:
        raise ApiError(
            400, f"{param}: the chat template reads no {_SWITCH}: the model's thinking cannot be turned off", param
        )
    return {}
