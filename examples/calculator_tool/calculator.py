"""The environment: a calculator. What the model writes before ``?`` is worked out, and the conversation goes on.

The model's turn ends at ``?`` because the run says so (``rollout.stop``).
"""

from __future__ import annotations

import re
from typing import Any

CALL = "?"
RESULT_END = ">"
_PRODUCT = re.compile(r"(\d{1,12})\*(\d{1,12})")


class Calculator:
    """One for each conversation; between ``reset`` and ``close`` it may keep what it likes."""

    async def reset(self, task: Any) -> None:
        """``task`` has ``prompt``, ``answer``, ``row`` and more: a calculator needs none of it."""
        self.num_calls = 0

    async def step(self, turn: Any) -> dict[str, Any]:
        """``turn`` is what the model said. The text of the reply is what the model reads before it goes on."""
        if not turn.text.endswith(CALL):
            return {"over": True, "metrics": {"used_tool": 0.0}}
        self.num_calls += 1
        found = _PRODUCT.fullmatch(turn.text.removesuffix(CALL))
        result = "" if found is None else str(int(found[1]) * int(found[2]))
        return {"text": result + RESULT_END, "metrics": {"used_tool": float(self.num_calls == 1)}}
