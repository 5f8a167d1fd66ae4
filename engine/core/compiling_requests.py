"""Requests that wait until their grammar is compiled, before the scheduler hears of them."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait

from rlserve.engine.grammars.compiler import GrammarCompiler
from rlserve.engine.grammars.matcher import Grammar
from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.engine.sequences.sequence import RequestState

_WAIT_S = 0.01
"""A step that has nothing else to do waits so long: commands to the engine do not wait longer."""


class CompilingRequests:
    """In order of arrival. Where compiling fails, whatever it raises, it is the problem of that request alone."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._waiting: dict[str, tuple[RequestState, Future[Grammar]]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def ids(self) -> list[str]:
        """Of the requests."""
        return list(self._waiting)

    @property
    def num_samples(self) -> int:
        """Of all requests, without those that were complete on arrival."""
        return sum(len(owner.sequences) for owner, _ in self._waiting.values())

    def add(self, owner: RequestState, wanted: StructuredOutput) -> None:
        """Have the grammar of a request compiled."""
        self._waiting[owner.request.id] = owner, self._compiler.compile(wanted)

    def remove(self, request_id: str) -> RequestState:
        """Let a request go."""
        return self._waiting.pop(request_id)[0]

    def take_compiled(self, *, waits: bool) -> list[RequestState]:
        """The requests that have their grammar now, or an error. ``waits``: for a short while, if there are none."""
        if not self._waiting:
            return []
        if waits:
            wait([future for _, future in self._waiting.values()], _WAIT_S, FIRST_COMPLETED)
        taken = []
        for owner, future in [entry for entry in self._waiting.values() if entry[1].done()]:
            problem = future.exception()
            if problem is None:
                owner.grammar = future.result()
            else:
                owner.error = f"structured_output: {problem}"
            taken.append(self.remove(owner.request.id))
        return taken
