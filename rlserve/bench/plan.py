"""From what a user asked for to the runs: the server is asked for its model and its tokenizer, and a writer is chosen.

======================  ==========================  ===========================================
prompts of a length     completions, token ids      completions or chat, text
======================  ==========================  ===========================================
``--tokenizer DIR``     ids of its vocabulary       pieces of text until it counts as many tokens
server has /tokenize    ids that it gives words     words that are one token each to it
neither                 refused                     a word a token, about
======================  ==========================  ===========================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlserve.bench.client.client import ServerAddress, open_session
from rlserve.bench.client.request import Endpoint, RequestSettings
from rlserve.bench.client.server import ask_pieces, find_model
from rlserve.bench.load.base import Load
from rlserve.bench.load.open_loop import RecordedLoad
from rlserve.bench.prompts.base import PromptWriter
from rlserve.bench.prompts.exact import MIN_NUM_PIECES, FolderTokens, PieceWriter, TextWriter, TokenIdWriter
from rlserve.bench.prompts.words import WordWriter
from rlserve.bench.session import Session
from rlserve.bench.workloads.factory import WorkloadKind, WorkloadSettings, create_workload
from rlserve.errors import UserError

DEFAULT_NUM_CONVERSATIONS = 100


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """All that a user may say."""

    address: ServerAddress
    workload: WorkloadSettings
    loads: tuple[Load, ...]
    """One a run; none stands for the times of a trace."""
    model: str | None = None
    """None asks the server."""
    endpoint: Endpoint | None = None
    """None: chat for conversations and messages, completions for all else."""
    is_streamed: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    uses_token_ids: bool = False
    num_conversations: int | None = None
    duration_s: float | None = None
    num_warm_up: int = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs, one after the other."""

    sessions: tuple[Session, ...]
    how_lengths_are_met: str

    @property
    def settings(self) -> RequestSettings:
        """What all have in common."""
        return self.sessions[0].settings


async def make_plan(settings: BenchSettings) -> Plan:
    """Ask the server, and check that everything fits.

    Raises:
        UserError: it does not, or the server cannot be asked.
        DataError: a file is damaged.
    """
    tokens = None if settings.tokenizer is None else FolderTokens(settings.tokenizer)
    async with open_session(settings.address) as connections:
        model = settings.model or await find_model(connections, settings.address)
        is_told = tokens is None and _draws_prompts(settings.workload)
        pieces = await ask_pieces(connections, settings.address, model) if is_told else {}
    writer = _writer(tokens, pieces, uses_token_ids=settings.uses_token_ids)
    sessions = []
    for position, load in enumerate(settings.loads or (RecordedLoad(settings.workload.speed),)):
        # Other prompts for each run of a sweep, so that none finds those of the one before in the server's cache.
        own = replace(settings.workload, seed=settings.workload.seed + position)
        sessions.append(_session(settings, own, load, writer, model=model, tokens=tokens))
        sessions[-1].check()
    return Plan(sessions=tuple(sessions), how_lengths_are_met=writer.how)


def _draws_prompts(settings: WorkloadSettings) -> bool:
    return settings.kind is not WorkloadKind.JSONL


def _writer(tokens: FolderTokens | None, pieces: Mapping[str, int], *, uses_token_ids: bool) -> PromptWriter:
    if tokens is not None:
        return TokenIdWriter(list(tokens.pieces().values())) if uses_token_ids else TextWriter(tokens)
    if uses_token_ids and not pieces:
        raise UserError("--token-ids needs --tokenizer DIR, or a server with /tokenize")
    if uses_token_ids:
        return TokenIdWriter(list(pieces.values()))
    return PieceWriter(list(pieces)) if len(pieces) >= MIN_NUM_PIECES else WordWriter()


def _session(
    settings: BenchSettings,
    workload_settings: WorkloadSettings,
    load: Load,
    writer: PromptWriter,
    *,
    model: str,
    tokens: FolderTokens | None,
) -> Session:
    workload = create_workload(workload_settings, writer)
    is_chat = workload.has_messages or workload_settings.kind is WorkloadKind.CONVERSATION
    number = settings.num_conversations
    if number is None and settings.duration_s is None:
        number = workload.num_conversations or DEFAULT_NUM_CONVERSATIONS
    return Session(
        address=settings.address,
        settings=RequestSettings(
            model=model,
            endpoint=settings.endpoint or (Endpoint.CHAT if is_chat else Endpoint.COMPLETIONS),
            is_streamed=settings.is_streamed,
            extra=settings.extra,
        ),
        workload=workload,
        load=load,
        num_conversations=number,
        duration_s=settings.duration_s,
        num_warm_up=settings.num_warm_up,
        count_tokens=None if tokens is None else tokens.count,
    )
