"""From what a user asked for to a workload."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from rlserve.bench.lengths import FixedLengths, Lengths
from rlserve.bench.prompts.base import PromptWriter
from rlserve.bench.workloads.base import Workload
from rlserve.bench.workloads.drawn import ConversationWorkload, RandomWorkload, SharedPrefixWorkload
from rlserve.bench.workloads.recorded import read_prompt_file, read_trace_file
from rlserve.errors import UserError


class WorkloadKind(StrEnum):
    """Names of workloads."""

    RANDOM = "random"
    PREFIX = "prefix"
    CONVERSATION = "conversation"
    JSONL = "jsonl"
    TRACE = "trace"


@dataclass(frozen=True, kw_only=True)
class WorkloadSettings:
    """All settings of all workloads; each takes those that are its own."""

    kind: WorkloadKind = WorkloadKind.RANDOM
    input_tokens: Lengths = field(default_factory=lambda: FixedLengths(512))
    output_tokens: Lengths = field(default_factory=lambda: FixedLengths(128))
    num_prefixes: int = 8
    prefix_tokens: int = 1024
    num_turns: Lengths = field(default_factory=lambda: FixedLengths(4))
    think_s: float = 0.0
    file: Path | None = None
    speed: float = 1.0
    ignores_end: bool | None = None
    """None: where lengths are drawn or recorded, but not for prompts of a file."""
    seed: int = 0


def create_workload(settings: WorkloadSettings, writer: PromptWriter) -> Workload:
    """The workload.

    Raises:
        UserError: it needs a file and none is named.
        DataError: its file is damaged.
    """
    if settings.kind in (WorkloadKind.JSONL, WorkloadKind.TRACE):
        return _from_file(settings, writer)
    drawn: dict[str, Any] = {
        "writer": writer,
        "input_tokens": settings.input_tokens,
        "output_tokens": settings.output_tokens,
        "ignores_end": settings.ignores_end is not False,
        "seed": settings.seed,
    }
    match settings.kind:
        case WorkloadKind.PREFIX:
            return SharedPrefixWorkload(
                **drawn, num_prefixes=settings.num_prefixes, prefix_tokens=settings.prefix_tokens
            )
        case WorkloadKind.CONVERSATION:
            return ConversationWorkload(**drawn, num_turns=settings.num_turns, think_s=settings.think_s)
        case _:
            return RandomWorkload(**drawn)


def _from_file(settings: WorkloadSettings, writer: PromptWriter) -> Workload:
    if settings.file is None:
        raise UserError(f"--workload {settings.kind} needs --file FILE")
    if settings.kind is WorkloadKind.JSONL:
        return read_prompt_file(
            settings.file,
            output_tokens=settings.output_tokens,
            ignores_end=settings.ignores_end is True,
            seed=settings.seed,
        )
    return read_trace_file(
        settings.file,
        writer=writer,
        output_tokens=settings.output_tokens,
        ignores_end=settings.ignores_end is not False,
        speed=settings.speed,
        seed=settings.seed,
    )
