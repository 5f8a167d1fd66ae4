"""Compare libraries for structured outputs: what they refuse, whether answers are valid, what compiling and masks take.

python benchmarks/grammar_libraries.py LIBRARY [--tokenizer FOLDER] [--budget-s N] [--json FILE]

LIBRARY is ``llguidance`` (as the engine uses it), ``xgrammar`` or ``outlines-core``, in an environment that has it. The
schemas are those of the engine's test, and an expression and texts to choose from stand beside them. Answers are drawn
at random from the masks, with a liking for what ends strings, lists and objects; one that has ended is checked by
``jsonschema``. Times are processor times of one thread.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES
from numpy.typing import NDArray
from structured import folder_with_tokenizer

from rlserve.engine.grammars.source import WHITESPACE
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer

END = 0
MAX_TOKENS = 250
NUM_ANSWERS = 2
SCHEMAS = Path(__file__).parents[1] / "tests" / "unit" / "engine"
REGEX = r"[A-Z][a-z]{1,12}( [a-z]{1,12}){2,8}[.]"
CHOICES = [f"choice number {number}" for number in range(100)]


class Walk(ABC):
    """One answer that is being drawn."""

    @abstractmethod
    def mask(self) -> NDArray[np.bool_]:
        """[V] which tokens may come next."""

    @abstractmethod
    def accept(self, token_id: int) -> None:
        """Go on with a token."""


class Library(ABC):
    """One of them, for one tokenizer."""

    @abstractmethod
    def compile(self, kind: str, text: str) -> Any:
        """A grammar.

        Raises:
            Exception: of whatever kind the library has for what it refuses.
        """

    @abstractmethod
    def walk(self, grammar: Any) -> Walk:
        """A new answer."""


class _Llguidance(Library):
    def __init__(self, folder: Path, vocab_size: int) -> None:
        from rlserve.engine.grammars.vocabulary import Vocabulary

        self._vocabulary = Vocabulary(FolderTokenizer(folder), vocab_size, (END,))

    def compile(self, kind: str, text: str) -> Any:
        from rlserve.engine import StructuredOutput
        from rlserve.engine.grammars.source import grammar_source

        library = import_module("llguidance")
        source = grammar_source(StructuredOutput(kind=kind, text=text))  # type: ignore[arg-type]
        start = library.LLMatcher(self._vocabulary.tokenizer, source, log_level=0)
        if start.is_error():
            raise ValueError(start.get_error())
        return start

    def walk(self, grammar: Any) -> Walk:
        matcher, vocabulary = grammar.deep_copy(), self._vocabulary

        class _Walk(Walk):
            def mask(self) -> NDArray[np.bool_]:
                masks = vocabulary.no_masks(1)
                vocabulary.fill(masks, [0], [matcher])
                return np.unpackbits(masks.view(np.uint8)[0], bitorder="little").view(np.bool_)

            def accept(self, token_id: int) -> None:
                assert matcher.consume_token(token_id)

        return _Walk()


class _Xgrammar(Library):
    def __init__(self, folder: Path, vocab_size: int) -> None:
        from transformers import AutoTokenizer

        self._xgrammar = import_module("xgrammar")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        info = self._xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=[END])
        self._vocab_size = vocab_size
        self._compiler = self._xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, kind: str, text: str) -> Any:
        if kind == "json_schema":
            return self._compiler.compile_json_schema(text)
        if kind == "choice":
            text = "|".join(map(re.escape, json.loads(text)))
        return self._compiler.compile_regex(text)

    def walk(self, grammar: Any) -> Walk:
        matcher = self._xgrammar.GrammarMatcher(grammar)
        bits = self._xgrammar.allocate_token_bitmask(1, self._vocab_size)

        class _Walk(Walk):
            def mask(self) -> NDArray[np.bool_]:
                bits.fill_(-1)
                matcher.fill_next_token_bitmask(bits)
                return np.unpackbits(bits.numpy().view(np.uint8)[0], bitorder="little").view(np.bool_)

            def accept(self, token_id: int) -> None:
                assert matcher.accept_token(token_id)

        return _Walk()


class _OutlinesCore(Library):
    def __init__(self, folder: Path, vocab_size: int) -> None:
        from llguidance import LLTokenizer

        self._outlines = import_module("outlines_core")
        self._schemas = import_module("outlines_core.json_schema")
        tokenizer = LLTokenizer(str(folder / "tokenizer.json"), n_vocab=vocab_size, eos_token=[END])
        ids: dict[bytes, list[int]] = {}
        for token_id in range(1, vocab_size):
            if text := tokenizer.decode_bytes([token_id]):
                ids.setdefault(text, []).append(token_id)
        self._vocabulary = self._outlines.Vocabulary(END, ids)
        self._num_words = -(-vocab_size // 32)

    def compile(self, kind: str, text: str) -> Any:
        if kind == "json_schema":
            text = self._schemas.build_regex_from_schema(text, WHITESPACE)
        elif kind == "choice":
            text = "|".join(map(re.escape, json.loads(text)))
        return self._outlines.Index(text, self._vocabulary)

    def walk(self, grammar: Any) -> Walk:
        guide = self._outlines.Guide(grammar)
        bits = np.zeros(self._num_words, dtype=np.int32)

        class _Walk(Walk):
            def mask(self) -> NDArray[np.bool_]:
                bits.fill(0)
                guide.write_mask_into(bits.ctypes.data, bits.size, bits.itemsize)
                return np.unpackbits(bits.view(np.uint8), bitorder="little").view(np.bool_)

            def accept(self, token_id: int) -> None:
                guide.advance(token_id, return_tokens=False)

        return _Walk()


LIBRARIES = {"llguidance": _Llguidance, "xgrammar": _Xgrammar, "outlines-core": _OutlinesCore}


@dataclass(kw_only=True)
class Found:
    """Of one library and kind."""

    num_tried: int = 0
    refused: list[str] = field(default_factory=list)
    num_ended: int = 0
    invalid: list[str] = field(default_factory=list)
    compile_ms: list[float] = field(default_factory=list)
    mask_us: list[float] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """In numbers."""
        lists = {"compile_ms": self.compile_ms, "mask_us": self.mask_us}
        numbers = {key: value for key, value in asdict(self).items() if key not in lists}
        for key, values in lists.items():
            numbers[key] = {"mean": mean(values), "median": median(values), "max": max(values)} if values else None
        return numbers


def _is_valid(kind: str, text: str, answer: str) -> bool:
    if kind == "regex":
        return re.fullmatch(text, answer) is not None
    if kind == "choice":
        return answer in json.loads(text)
    jsonschema = import_module("jsonschema")
    checker = jsonschema.FormatChecker()
    checker.checks("date-time", raises=ValueError)(_is_date_time)
    checker.checks("time", raises=ValueError)(lambda text: _is_date_time(f"2000-01-01T{text}"))
    try:
        value = json.loads(answer)
        jsonschema.Draft202012Validator(json.loads(text), format_checker=checker).validate(value)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def _is_date_time(text: object) -> bool:
    """Leap seconds are right, and Python does not know them."""
    return not isinstance(text, str) or datetime.fromisoformat(text.upper().replace(":60", ":59")) is not None


def _draw(walk: Walk, numbers: np.random.Generator, favoured: NDArray[np.float64], times: list[float]) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        begin_s = time.process_time()
        mask = walk.mask()
        times.append(1e6 * (time.process_time() - begin_s))
        possible = np.flatnonzero(mask[: len(favoured)])
        weights = favoured[possible]
        tokens.append(int(numbers.choice(possible, p=weights / weights.sum())))
        if tokens[-1] == END:
            break
        walk.accept(tokens[-1])
    return tokens


def main() -> int:
    """Measure one library."""
    parser = argparse.ArgumentParser(prog="benchmarks/grammar_libraries.py", description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--budget-s", type=float, default=600.0, help="begin no other schema after so long")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    sys.path.append(str(SCHEMAS))
    shape = SHAPES["75m"]
    folder = folder_with_tokenizer(shape, DEFAULT_CACHE)
    tokenizer = FolderTokenizer(folder)
    library = LIBRARIES[options.library](folder, shape.vocab_size)
    wanted = [("json_schema", name, json.dumps(each)) for name, each in import_module("json_schemas").schemas().items()]
    wanted = [("regex", "words", REGEX), ("choice", "of 100", json.dumps(CHOICES)), *wanted]
    favoured = np.ones(shape.vocab_size)
    favoured[END] = 3000
    for token, token_id in tokenizer.token_ids().items():
        if token in ('"', "]", "}", "."):
            favoured[token_id] = 1000
    numbers, begin_s = np.random.default_rng(0), time.monotonic()
    found = {kind: Found() for kind in ("json_schema", "regex", "choice")}
    for kind, name, text in wanted:
        if time.monotonic() - begin_s > options.budget_s:
            break
        of = found[kind]
        of.num_tried += 1
        compile_begin_s = time.process_time()
        try:
            grammar = library.compile(kind, text)
        except Exception as error:  # whatever the library has for it
            of.refused.append(f"{name}: {str(error).strip().splitlines()[0][:100]}")
            continue
        of.compile_ms.append(1e3 * (time.process_time() - compile_begin_s))
        for _ in range(NUM_ANSWERS):
            tokens = _draw(library.walk(grammar), numbers, favoured, of.mask_us)
            if tokens[-1] != END:
                continue
            of.num_ended += 1
            answer = tokenizer.decode(tokens[:-1])
            if not _is_valid(kind, text, answer):
                of.invalid.append(f"{name}: {answer[:100]}")
    lines = {kind: each.line() for kind, each in found.items()}
    print(json.dumps(lines, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps({**circumstances(), "library": options.library, **lines}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
