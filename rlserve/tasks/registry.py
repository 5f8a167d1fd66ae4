"""The built-in tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rlserve.tasks.addition import AdditionTask
from rlserve.tasks.base import Task
from rlserve.tasks.countdown import CountdownTask
from rlserve.tasks.digits import DigitsTask

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (AdditionTask(), CountdownTask(), DigitsTask())}
)
BUILTIN_REWARDS: Mapping[str, str] = MappingProxyType(
    {f"{type(task).__module__}:reward": f"builtin:{name}" for name, task in TASKS.items()}
)
"""``reward.function`` of each task, and the ``data.path`` that it can score."""
