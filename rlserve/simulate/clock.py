"""Virtual time: what is due next is taken from a heap, and time jumps there. It never goes back.

A *process* is a generator that yields what it waits for: seconds, or a :class:`Latch` that another process opens.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from itertools import count
from typing import TypeAlias


class Latch:
    """Something that happens once, and that processes wait for."""

    __slots__ = ("_waiting", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._waiting: list[Callable[[], None]] = []

    def open(self) -> None:
        """It has happened: all who wait go on, in the order in which they came."""
        self.is_open = True
        waiting, self._waiting = self._waiting, []
        for go_on in waiting:
            go_on()

    def when_open(self, go_on: Callable[[], None]) -> None:
        """Call ``go_on`` when it happens; at once where it has happened."""
        if self.is_open:
            go_on()
        else:
            self._waiting.append(go_on)


Process: TypeAlias = Generator[float | Latch, None, None]


class Clock:
    """Seconds since the beginning, and what is due when. What is due at the same time happens in the order in which it
    was asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_events = 0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._stopped = False

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call ``action`` in ``delay_s`` seconds."""
        assert delay_s >= 0, f"time does not go back: {delay_s}"
        heapq.heappush(self._due, (self.now_s + delay_s, next(self._order), action))

    def within(self, delay_s: float, latch: Latch) -> Latch:
        """Opens when ``latch`` does, or in ``delay_s`` seconds."""
        either = Latch()
        latch.when_open(either.open)
        self.after(delay_s, either.open)
        return either

    def start(self, process: Process) -> None:
        """Run a process up to the first thing that it waits for, and on from there."""

        def go_on() -> None:
            for wait in process:
                if isinstance(wait, Latch):
                    if wait.is_open:
                        continue
                    wait.when_open(go_on)
                else:
                    self.after(wait, go_on)
                return

        go_on()

    def stop(self) -> None:
        """Let nothing happen any more: time stands still from now on."""
        self._stopped = True

    def run_until(self, end_s: float) -> None:
        """Let everything happen that is due by ``end_s``, where time then stands, unless it is stopped before."""
        due, pop = self._due, heapq.heappop
        while not self._stopped and due and due[0][0] <= end_s:
            time_s, _, action = pop(due)
            assert time_s >= self.now_s, "time went back"
            self.now_s = time_s
            self.num_events += 1
            action()
        if not self._stopped:
            self.now_s = end_s
