"""Where texts stand in a regular expression, as a number: two texts with the same may be followed by the same.

```
 expression ──► tree ──► places: one for each symbol, counts written out; which may follow which
                           │ as texts come, never beforehand
                           ▼
 state ──byte──► state     a state is the set of places that may come next, and whether the text may end
```

The construction is Glushkov's (The abstract theory of automata, 1961), and its states are made as they are met, so an
expression that could have millions costs what its texts use.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from rlserve.engine.grammars.expression import Choice, Repeat, Sequence, Symbol, Tree, parsed

MAX_PLACES = 2000
MAX_EDGES = 20_000
"""Pairs of places that may follow each other; so much does the longest step look at."""
MAX_STATES = 2000
_MAX_STATE_PLACES = 100_000
"""Places of all states together."""
_NUM_ASCII = 128
_UNKNOWN, _NOWHERE = -1, -2


class Automaton:
    """Of one expression. States are numbers; nothing is ever forgotten, and a text whose state would be one too many
    has none."""

    start = 0

    def __init__(self, places: _Places) -> None:
        self._places = places
        self._numbers: dict[tuple[tuple[int, ...], bool], int] = {}
        self._nexts: list[tuple[int, ...]] = []
        """Of each state, the places that may come next, in order."""
        self._is_open: list[bool] = []
        self._steps: list[array[int]] = []
        """Of each state, the state behind each ASCII character."""
        self._num_places = 0
        self._number(tuple(sorted(places.first)), places.is_nullable)

    def after(self, state: int, text: bytes) -> int | None:
        """The state behind a text that comes in a state; None where it is not known: bytes that are not ASCII, a text
        that does not match, too many states."""
        for byte in text:
            if byte >= _NUM_ASCII:
                return None
            following = self._steps[state][byte]
            if following == _UNKNOWN:
                following = self._steps[state][byte] = self._step(state, byte)
            if following == _NOWHERE:
                return None
            state = following
        return state

    def is_open(self, state: int) -> bool:
        """Whether several ASCII characters may come next, or one and the end: nothing is forced."""
        return self._is_open[state]

    def _step(self, state: int, byte: int) -> int:
        reached = [place for place in self._nexts[state] if self._places.symbols[place] >> byte & 1]
        if not reached:
            return _NOWHERE
        nexts = set[int]().union(*(self._places.following[place] for place in reached))
        return self._number(tuple(sorted(nexts)), not self._places.last.isdisjoint(reached))

    def _number(self, nexts: tuple[int, ...], may_end: bool) -> int:
        number = self._numbers.get((nexts, may_end))
        if number is not None:
            return number
        if len(self._nexts) == MAX_STATES or self._num_places + len(nexts) > _MAX_STATE_PLACES:
            return _NOWHERE
        self._num_places += len(nexts)
        self._nexts.append(nexts)
        possible = 0
        for place in nexts:
            possible |= self._places.symbols[place]
        self._is_open.append(possible.bit_count() + may_end > 1)
        self._steps.append(array("i", [_UNKNOWN]) * _NUM_ASCII)
        return self._numbers.setdefault((nexts, may_end), len(self._nexts) - 1)


def automaton_of(pattern: str) -> Automaton | None:
    """None where the expression has something whose meaning is not told here, or is too large."""
    tree = parsed(pattern)
    if tree is None:
        return None
    places = _Places()
    try:
        whole = places.add(tree)
    except _TooLargeError:
        return None
    places.first, places.last, places.is_nullable = whole.first, frozenset(whole.last), whole.is_nullable
    return Automaton(places)


class _TooLargeError(Exception):
    """More places or edges than are taken."""


@dataclass(frozen=True)
class _Part:
    """What a part of the expression begins and ends with."""

    is_nullable: bool
    first: frozenset[int]
    last: frozenset[int]


_EMPTY = _Part(is_nullable=True, first=frozenset(), last=frozenset())


@dataclass
class _Places:
    """The symbols of an expression, counts written out, and which may follow which."""

    symbols: list[int] = field(default_factory=list)
    """Of each place, a bit for each ASCII character."""
    following: list[set[int]] = field(default_factory=list)
    num_edges: int = 0
    first: frozenset[int] = frozenset()
    last: frozenset[int] = frozenset()
    is_nullable: bool = True

    def add(self, tree: Tree) -> _Part:
        """Add a part that nothing follows yet."""
        match tree:
            case Symbol(ascii=characters):
                if len(self.symbols) == MAX_PLACES:
                    raise _TooLargeError
                self.symbols.append(characters)
                self.following.append(set())
                only = frozenset([len(self.symbols) - 1])
                return _Part(is_nullable=False, first=only, last=only)
            case Sequence(parts=parts):
                whole = _EMPTY
                for part in parts:
                    whole = self._behind(whole, self.add(part))
                return whole
            case Choice(parts=parts):
                added = [self.add(part) for part in parts]
                return _Part(
                    is_nullable=any(part.is_nullable for part in added),
                    first=frozenset().union(*(part.first for part in added)),
                    last=frozenset().union(*(part.last for part in added)),
                )
            case Repeat():
                return self._repeated(tree)

    def _repeated(self, tree: Repeat) -> _Part:
        """``x{2,4}`` as ``xx(x(x)?)?``, so that each copy is followed by the next alone; ``x{2,}`` as ``xxx*``."""
        whole = _EMPTY
        for _ in range(tree.least):
            whole = self._behind(whole, self.add(tree.part))
        if tree.most is None:
            return self._behind(whole, self._again(tree.part))
        optional = _EMPTY
        for _ in range(tree.most - tree.least):
            copy = self._behind(self.add(tree.part), optional)
            optional = _Part(is_nullable=True, first=copy.first, last=copy.last)
        return self._behind(whole, optional)

    def _again(self, tree: Tree) -> _Part:
        part = self.add(tree)
        self._connect(part.last, part.first)
        return _Part(is_nullable=True, first=part.first, last=part.last)

    def _behind(self, left: _Part, right: _Part) -> _Part:
        self._connect(left.last, right.first)
        return _Part(
            is_nullable=left.is_nullable and right.is_nullable,
            first=left.first | right.first if left.is_nullable else left.first,
            last=left.last | right.last if right.is_nullable else right.last,
        )

    def _connect(self, lasts: frozenset[int], firsts: frozenset[int]) -> None:
        self.num_edges += len(lasts) * len(firsts)
        if self.num_edges > MAX_EDGES:
            raise _TooLargeError
        for place in lasts:
            self.following[place] |= firsts
