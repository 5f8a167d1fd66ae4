"""Compiles grammars beside the engine's thread, and remembers them.

request ──► compile ──► known? ──► its future
                          │ no
                          └──► worker thread: source ──► llguidance ──► Grammar, or UserError
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from importlib.util import find_spec

from rlserve.engine.grammars.automaton import automaton_of
from rlserve.engine.grammars.matcher import Grammar, first_line
from rlserve.engine.grammars.source import grammar_source
from rlserve.engine.grammars.vocabulary import Vocabulary
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer
from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.errors import UserError

MAX_GRAMMARS = 256
"""Most grammars that are remembered; of more, those that were wanted last. Everybody can send new ones."""
_MAX_LEXER_STATES = 50_000
"""Of one matcher; each takes one or two kilobytes."""
_STACK_BYTES = 2**28
"""Of the worker; what is not used takes no memory. Compiling descends from rule to rule, and thousands of them, one in
the other, would end the process on a stack of the usual size."""


class GrammarCompiler:
    """One for each engine, and so for each tokenizer.

    Args:
        tokenizer: of the model's folder.
        vocab_size: of the model's logits.
        eos_token_ids: those that end a sample.
    """

    def __init__(self, tokenizer: FolderTokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._grammars: OrderedDict[StructuredOutput, Future[Grammar]] = OrderedDict()

    def compile(self, wanted: StructuredOutput) -> Future[Grammar]:
        """The grammar, as soon as it is compiled. The future raises ``UserError`` where it cannot be: a text with a
        mistake, something that is not supported, a tokenizer that is none, or llguidance is not installed."""
        future = self._grammars.get(wanted)
        if future is None:
            future = self._grammars[wanted] = self._worker.submit(self._compiled, wanted)
            if len(self._grammars) > MAX_GRAMMARS:
                self._grammars.popitem(last=False)
        self._grammars.move_to_end(wanted)
        return future

    @cached_property
    def _worker(self) -> ThreadPoolExecutor:
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")
        before = threading.stack_size(_STACK_BYTES)
        try:
            worker.submit(int).result()  # starts the thread
        finally:
            threading.stack_size(before)
        return worker

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        """Made by the worker."""
        if find_spec("llguidance") is None:
            raise UserError("it needs llguidance: pip install 'rlserve[structured]'")
        return Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)

    def _compiled(self, wanted: StructuredOutput) -> Grammar:
        vocabulary = self._vocabulary  # first: it says whether llguidance is there
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
        start = LLMatcher(vocabulary.tokenizer, grammar_source(wanted), limits=limits, log_level=0)
        if not start.is_error():
            # What the first mask needs is made here, and copied with the grammar.
            vocabulary.fill(vocabulary.no_masks(1), [0], [start])
        if start.is_error():
            raise UserError(first_line(start.get_error()))
        return Grammar(start, vocabulary, automaton_of(wanted.text) if wanted.kind == "regex" else None)
