"""The formats by name."""

from __future__ import annotations

from collections.abc import Mapping

from rlserve.serving.tool_parsers.base import ToolFormat
from rlserve.serving.tool_parsers.hermes import HermesFormat
from rlserve.serving.tool_parsers.llama import LlamaFormat

TOOL_FORMATS: Mapping[str, ToolFormat] = {"hermes": HermesFormat(), "llama3_json": LlamaFormat()}
"""Under vLLM's names."""
