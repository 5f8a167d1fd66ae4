"""Whether a request can be taken as the engine stands now."""

from __future__ import annotations

from rlserve.engine.core.adapters import LoadedAdapters
from rlserve.engine.core.generation import Generation
from rlserve.engine.core.memory import EngineMemory
from rlserve.engine.core.weight_versions import WeightVersions
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer
from rlserve.engine.requests.request import Request
from rlserve.engine.requests.validation import Limits, find_problem, shown
from rlserve.engine.sequences.bad_words import find_bad_word_problem


class Admission:
    """Reads of all, and changes nothing."""

    def __init__(
        self,
        limits: Limits,
        tokenizer: FolderTokenizer,
        generation: Generation,
        weights: WeightVersions,
        memory: EngineMemory,
        adapters: LoadedAdapters,
    ) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._generation = generation
        self._weights = weights
        self._memory = memory
        self._adapters = adapters

    def find_problem(self, request: Request) -> str | None:
        """Why a request cannot be taken, or None."""
        if not isinstance(request.id, str):
            return f"id must be a string, got {shown(request.id)}"
        if request.id in self._generation:
            return f"a request with id {request.id!r} is in the engine already"
        if self._memory.is_released:
            return "the engine's memory is released: restore it first"
        if not self._weights.is_loaded:
            return "the engine has no weights: load a whole version first"
        return self._find_problem_inside(request)

    def _find_problem_inside(self, request: Request) -> str | None:
        """What is wrong with what it asks for."""
        problem, sampling = find_problem(request, self._limits), request.sampling
        if problem is None and request.adapter not in (None, *self._adapters.names):
            loaded = ", ".join(map(repr, self._adapters.names)) or "none"
            problem = f"adapter {shown(request.adapter)} is not loaded; those that are: {loaded}"
        if problem is None and (sampling.stop or sampling.bad_words):
            problem = self._tokenizer.problem
        if problem is None and sampling.bad_words:
            problem = find_bad_word_problem(sampling, self._limits, self._tokenizer.encode)
        return problem
