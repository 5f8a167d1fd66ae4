"""Roles where there is but one."""

from __future__ import annotations

from rlserve.controller.role_changes import RoleChanges


class TrainersOnly(RoleChanges):
    """All gangs train; one is enough."""

    num_gangs_needed = 1
