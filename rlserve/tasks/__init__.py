"""Built-in tasks: something real to train on with no download. Imports no torch.

``model.path=builtin:addition`` and ``data.path=builtin:addition`` name the same task.
"""

from __future__ import annotations

from rlserve.tasks.cache import find_made_model, is_builtin, resolve_data, resolve_model
from rlserve.tasks.registry import BUILTIN_REWARDS, TASKS

__all__ = ["BUILTIN_REWARDS", "TASKS", "find_made_model", "is_builtin", "resolve_data", "resolve_model"]
