"""Imports of a worker, which are most of its start: only what its role needs, and without the garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def importing() -> Iterator[None]:
    """Within, imports take a fifth less: nothing is garbage yet, and the collector would look for it all the time. From
    the end on it passes over all that there is: a collection that looks at all modules holds engine steps up for a
    quarter of a second. Whoever drops something big calls :func:`look_at_all`."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def import_now(modules: Sequence[str]) -> None:
    """Import what was not yet."""
    missing = [name for name in modules if name not in sys.modules]
    if missing:
        with importing():
            for name in missing:
                import_module(name)


def look_at_all() -> None:
    """After something big was dropped that may have been there when something was imported: let the collector find what
    is left of it."""
    gc.unfreeze()
