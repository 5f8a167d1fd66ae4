"""``tools`` and ``tool_choice``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from rlserve.serving.protocol.sampling import ApiModel
from rlserve.serving.tool_parsers.base import Tool

MAX_TOOLS = 128
FUNCTION_NAME = r"^[A-Za-z0-9_.-]{1,64}$"


class FunctionSpec(ApiModel):
    """What a tool is called, does and takes. What else it has is given to the template."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema; none takes no arguments."""


class ToolSpec(ApiModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionSpec

    def for_template(self) -> dict[str, Any]:
        """As templates read it."""
        return self.model_dump(exclude_none=True)

    @property
    def tool(self) -> Tool:
        """As parsers and grammars know it."""
        nothing = {"type": "object", "properties": {}, "additionalProperties": False}
        return Tool(name=self.function.name, parameters=self.function.parameters or nothing)


class FunctionName(ApiModel):
    """Names one."""

    name: str


class NamedTool(ApiModel):
    """The tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["auto", "none", "required"] | NamedTool
