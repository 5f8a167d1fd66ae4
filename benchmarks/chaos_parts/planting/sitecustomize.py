"""Faults inside the workers of a run, which cannot be done to them from outside. Python imports this module by itself
in every process that has the folder in ``PYTHONPATH``; only workers that roll out ever import what it changes.

::

    injector ──► order: a file with the name of the process ──► looked at whenever the replica scores the canary,
                 in $RLSERVE_CHAOS_ORDERS                       that is, when it has just taken a version
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_ROLE = "rlserve.pool.roles.rollout"
_MUCH = 1 << 50


class Planter:
    """Imports the rollout role, and changes it. Is a finder of modules for that (``sys.meta_path``)."""

    def __init__(self, orders: Path) -> None:
        self._orders = orders

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The role's module, which is changed as soon as it has run; nothing for others."""
        if name != _ROLE:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_change(module: ModuleType) -> None:
            run(module)
            self._change(module.RolloutRole)

        spec.loader.exec_module = run_and_change  # type: ignore[method-assign]
        return spec

    def _change(self, role: Any) -> None:
        score = role.score_canary

        def obey_and_score(replica: Any, *arguments: Any) -> Any:
            path = self._orders / str(os.getpid())  # workers are forks
            if path.exists():
                order = path.read_text()
                path.with_suffix(".done").touch()
                if order != "wrong replica":  # that is wrong whatever weights it takes
                    path.unlink()
                replica._loop.run(_exhaust_memory if order == "no memory" else _spoil_weights)
            return score(replica, *arguments)

        role.score_canary = obey_and_score


def _spoil_weights(engine: Any) -> None:
    """The engine holds others than those that it took."""
    for weights in engine._runner._parameters._fused:
        weights.mul_(-3.0)


def _exhaust_memory(engine: Any) -> None:
    """The next step asks for more than there is."""
    import torch

    def forward(*_: Any) -> torch.Tensor:
        return torch.empty(_MUCH, dtype=torch.uint8)

    engine._runner.forward = forward


if _orders := os.environ.get("RLSERVE_CHAOS_ORDERS"):
    sys.meta_path.insert(0, Planter(Path(_orders)))  # type: ignore[arg-type]
