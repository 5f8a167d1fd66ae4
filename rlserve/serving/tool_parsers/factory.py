"""The formats by name."""

from __future__ import annotations

from collections.abc import Mapping

from rlserve.serving.tool_parsers.base import ToolFormat
from rlserve.serving.tool_parsers.hermes import OPENING, HermesFormat
from rlserve.serving.tool_parsers.llama import OPENING as PYTHON_TAG
from rlserve.serving.tool_parsers.llama import LlamaFormat

TOOL_FORMATS: Mapping[str, ToolFormat] = {"hermes": HermesFormat(), "llama3_json": LlamaFormat()}
"""Under vLLM's names."""


def find_tool_format(configured: str, template: str) -> ToolFormat | None:
    """The configured format; for ``auto`` the one that a chat template shows to the model; None for ``none``, or where
    it shows none that is known."""
    if configured != "auto":
        return TOOL_FORMATS.get(configured)
    if OPENING in template:
        return TOOL_FORMATS["hermes"]
    shows_llama = PYTHON_TAG in template or ('"parameters"' in template and "tools" in template)
    return TOOL_FORMATS["llama3_json"] if shows_llama else None
